"""Sampling: a model (ids to logits) in, music out."""
