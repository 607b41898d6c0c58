"""Sound: files, rendering, captions, and what encodes words, music and waveforms. Knows nothing about tokens or training."""
