"""Sound: files, rendering, captions, and what encodes words, music and waveforms."""
