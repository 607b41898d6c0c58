"""A vocabulary with two merged tokens, and an encoding that has them."""

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.bpe import Bpe
from megatron_music.tokens.encoding import Encoding

BPE = Bpe([(v.NOTE_ON + 60, v.TIME_DELTA + 4), (v.SIZE, v.NOTE_OFF + 60)])


MERGED = Encoding(labels=(("GENRE", ("JAZZ", "SYNTH_PAD")), ("MOOD", ("TRAPADOR",))), bpe=2)
