"""What a piece of music is: tracks of notes in grid steps. Knows nothing about tokens or models."""
