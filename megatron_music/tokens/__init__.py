"""The mmmtrack encoding: scores to token ids and back. Knows nothing about files, datasets or models."""
