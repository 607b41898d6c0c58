"""`tokenize`, `detokenize`, `plot` and `corpus bach`."""

import re
import sys
from pathlib import Path

from megatron_music.cli.console import (
    check_one_file,
    check_output_file,
    print_next,
    print_result,
    progress_bar,
)
from megatron_music.cli.dataset_options import encoding_of
from megatron_music.config.errors import counted
from megatron_music.config.log import command_line, is_quiet, logger, print_text
from megatron_music.storage.reading import read_text, reason_of


def tokenize(options) -> None:
    import numpy as np

    from megatron_music.data.encode import encode_score
    from megatron_music.music.grid import quantize, sections
    from megatron_music.music.midi import read_midi
    from megatron_music.reports.reasons import remedy
    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.mmmtrack import encode_piece

    check_one_file(options.file, "tokenize")
    score = read_midi(options.file, voices=options.voices, pedal=options.pedal)
    if not options.meters:
        options.meters = "4/4"
        encoding = encoding_of(options)
        unknown = encoding.undeclared(score.time_signatures)
        if [part.length_steps for part in sections(score, ((4, 4),), unknown, encoding.steps_per_quarter)] != [
            score.length_steps
        ]:
            options.meters = "all"
            logger.info(f"{options.file} is not all in 4/4, so its meters are written too, as with --meters all")
    encoding = encoding_of(options)
    if encoding.bars or encoding.writes_meters:
        found = encode_score(score, encoding)
        if found.left_out:
            way_out = remedy(found.left_out, encoding)
            raise ValueError(f"{options.file} has {found.left_out}{f'; {way_out}' if way_out else ''}")
        for document in np.split(found.ids, np.cumsum(found.lengths)[:-1]):
            print_text(vocabulary.to_text(document[:-1]))
        return
    unknown = encoding.undeclared(score.time_signatures)
    if [stretch.length_steps for stretch in sections(score, ((4, 4),), unknown, encoding.steps_per_quarter)] != [
        score.length_steps
    ]:
        logger.warning(f"{options.file} is not all in 4/4; its bars are written as if it were, as --meters 4/4 asks")
    quantized = quantize(score, encoding.steps_per_quarter, velocity=encoding.velocity, tempo=encoding.tempo)
    print_text(vocabulary.to_text(encode_piece(quantized, encoding)))


def detokenize(options) -> None:
    import numpy as np

    from megatron_music.music.midi import write_midi
    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.lexicon import read_wording
    from megatron_music.tokens.mmmtrack import check_grid, decode_piece

    check_one_file(options.file, "detokenize")
    if options.file == "-":
        text = sys.stdin.read()
    else:
        try:
            text = read_text(options.file)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{options.file} cannot be read as text ({reason_of(error)}); name a file of tokens"
            ) from None
    steps_per_quarter = options.steps_per_quarter
    if options.tokenizer:
        encoding, bpe, wording = read_wording(options.tokenizer)
        steps_per_quarter = encoding.steps_per_quarter
        ids = wording.to_ids(text)
        ids = bpe.decode(ids) if bpe else ids
    else:
        ids = vocabulary.to_ids(text)
    pieces = np.split(ids, np.flatnonzero(ids == vocabulary.PIECE_START))[1:]
    check_output_file(options.output)
    if not pieces:
        raise ValueError(f"{options.file} has no PIECE_START; name a file written by `megatron-music tokenize`")
    if options.piece is None and len(pieces) > 1:
        raise ValueError(f"{options.file} holds {len(pieces)} pieces; choose one with --piece 1..{len(pieces)}")
    number = options.piece or 1
    if not 1 <= number <= len(pieces):
        raise ValueError(f"--piece {number} is not in 1..{len(pieces)}")
    doubt = check_grid(pieces[number - 1], steps_per_quarter)
    if doubt:
        logger.warning(doubt)
    write_midi(decode_piece(pieces[number - 1], steps_per_quarter), options.output)
    if not is_quiet():
        print_text(f"piece {number} of {len(pieces)} in {options.output}")


def plot(options) -> None:
    from megatron_music.music.midi import read_midi
    from megatron_music.reports.pianoroll import plot_score

    check_one_file(options.file, "plot")
    check_output_file(options.output, (".png", ".pdf", ".svg"))
    bars = _bar_range(options.bars) if options.bars else None
    for remark in plot_score(read_midi(options.file), options.output, Path(options.file).name, bars):
        logger.warning(remark)
    if not is_quiet():
        print_text(f"piano roll in {options.output}")


def _bar_range(words: str) -> tuple[int, int]:
    """The first and the last bar of ``9-16``, ``9..16`` or ``9``."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:(?:-|\.\.)\s*(\d{1,9})\s*)?", words, re.ASCII)
    if not match:
        raise ValueError(f"--bars is {words!r}; give the first and the last bar, such as 9-16")
    return int(match[1]), int(match[2] or match[1])


def corpus_bach(options) -> None:
    from megatron_music.corpora.bach import write_chorales
    from megatron_music.storage.holding import hold_folder

    with hold_folder(options.output, "corpus bach"), progress_bar("score") as bar:
        for done, total in write_chorales(options.output, options.workers):
            bar.total = total
            bar.update(done - bar.n)
    count = len(list(Path(options.output).glob("*.mid")))
    result = {"output": options.output, "chorales": count}
    print_result(options, result, f"{counted(count, 'chorale')} in {options.output}")
    print_next(options, command_line("build", "tokens", options.output, "-o", "data"))
