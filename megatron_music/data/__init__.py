"""Corpora on disk: MIDI folders to ``.bin/.idx``, and batches out of them. Knows nothing about models."""
