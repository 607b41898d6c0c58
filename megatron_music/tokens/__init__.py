"""The mmmtrack encoding: scores to token ids and back."""
