"""Checkpoints: folders that are found, verified, read and written in shares."""
