"""Sampling: a model (ids to logits) in, music out. Knows nothing about datasets or training."""
