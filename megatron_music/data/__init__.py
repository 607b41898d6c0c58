"""Corpora on disk: MIDI folders to ``.bin/.idx``, and batches out of them."""
