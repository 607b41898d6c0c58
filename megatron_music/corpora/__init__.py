"""Where music comes from: MIDI files in folders and archives, labels, captioned audio."""
