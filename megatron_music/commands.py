"""The commands, one function each. Each imports what it needs when it runs, so that ``tokenize`` starts at once.

The place where training's checkpoints and generation's models are joined; knows the command line's words and no more.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

OK, FAILED = 0, 1


def _encoding(options):
    from megatron_music.tokens.folder import Encoding

    return Encoding(options.steps_per_quarter, options.bars, options.hop, options.bar_line)


def progress_bar(unit: str, total: int | None = None, items: Iterable | None = None):
    """A tqdm bar on stderr; silent where that is no terminal, and for the first half second."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit=unit, disable=None, delay=0.5, leave=False)


def _progress(unit: str) -> Callable[[Iterable, int | None], Iterable]:
    return lambda items, total: progress_bar(unit, total, items)


def tokenize(options) -> None:
    import numpy as np

    from megatron_music.data.encode import encode_score
    from megatron_music.music.grid import four_four_sections, quantize
    from megatron_music.music.midi import read_midi
    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.mmmtrack import encode_piece

    encoding = _encoding(options)
    score = read_midi(options.file)
    if encoding.bars:
        ids, lengths, _, left_out = encode_score(score, encoding)
        if left_out:
            raise ValueError(f"{options.file} has {left_out}; leave out --bars for the whole piece")
        for window in np.split(ids, np.cumsum(lengths)[:-1]):
            print(vocabulary.to_text(window[:-1]))
        return
    if four_four_sections(score) != [score]:
        print(f"megatron-music: {options.file} is not all in 4/4; its bars are written as if it were", file=sys.stderr)
    print(vocabulary.to_text(encode_piece(quantize(score, encoding.steps_per_quarter), encoding.bar_line)))


def detokenize(options) -> None:
    import numpy as np

    from megatron_music.music.midi import write_midi
    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.mmmtrack import decode_piece

    if options.file == "-":
        text = sys.stdin.read()
    else:
        try:
            text = Path(options.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{options.file} cannot be read as text ({error}); name a file of tokens") from None
    ids = vocabulary.to_ids(text)
    pieces = np.split(ids, np.flatnonzero(ids == vocabulary.PIECE_START))[1:]
    _check_output_file(options.output)
    if not pieces:
        raise ValueError(f"{options.file} has no PIECE_START; name a file written by `megatron-music tokenize`")
    if options.piece is None and len(pieces) > 1:
        raise ValueError(f"{options.file} holds {len(pieces)} pieces; choose one with --piece 1..{len(pieces)}")
    number = options.piece or 1
    if not 1 <= number <= len(pieces):
        raise ValueError(f"--piece {number} is not in 1..{len(pieces)}")
    write_midi(decode_piece(pieces[number - 1], options.steps_per_quarter), options.output)


def plot(options) -> None:
    from megatron_music.music.midi import read_midi
    from megatron_music.music.pianoroll import plot_score

    _check_output_file(options.output, (".png", ".pdf", ".svg"))
    plot_score(read_midi(options.file), options.output, Path(options.file).name)


def _check_output_file(path: str, suffixes: tuple[str, ...] = ()) -> None:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{Path(path).parent} does not exist; make the folder first")
    if suffixes and not path.lower().endswith(suffixes):
        raise ValueError(f"{path} does not end in {', '.join(suffixes)}; name a picture so")


def corpus_bach(options) -> None:
    from megatron_music.data.bach import write_chorales

    with progress_bar("score") as bar:
        for done, total in write_chorales(options.output, options.workers):
            bar.total = total
            bar.update(done - bar.n)
    count = len(list(Path(options.output).glob("*.mid")))
    print(f"{count} chorales in {options.output}")


def build_tokens(options) -> None:
    from megatron_music.data.build import build_tokens
    from megatron_music.data.report import describe

    try:
        fractions = tuple(float(part) for part in options.split.split(","))
        train, valid, test = fractions
    except ValueError:
        raise ValueError(f"--split is {options.split!r}; give three fractions such as 0.9,0.05,0.05") from None
    report = build_tokens(
        options.sources,
        options.output,
        _encoding(options),
        options.workers,
        options.seed,
        (train, valid, test),
        _progress("file"),
    )
    print(json.dumps(report, indent=1) if options.json else describe(report, options.output))


def inspect(options) -> None:
    from megatron_music.data.report import describe, read_report

    report = read_report(options.dataset)
    if options.document is None:
        if options.output:
            raise ValueError("-o needs --document K, the document to write")
        print(json.dumps(report, indent=1) if options.json else describe(report, options.dataset))
        return
    from megatron_music.data.indexed import open_split
    from megatron_music.music.midi import write_midi
    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.folder import read_encoding
    from megatron_music.tokens.mmmtrack import decode_piece

    documents = open_split(options.dataset, options.split)
    if not 0 <= options.document < len(documents):
        raise ValueError(f"--document {options.document} is not in 0..{len(documents) - 1} of {options.split}")
    ids = documents[options.document]
    if options.output:
        _check_output_file(options.output)
        encoding = read_encoding(Path(options.dataset, "tokenizer"))
        write_midi(decode_piece(ids, encoding.steps_per_quarter), options.output)
    else:
        print(vocabulary.to_text(ids))


def recipes(options) -> None:
    from megatron_music.recipes import recipe_names

    for name, description in recipe_names().items():
        print(f"{name:12} {description}")


def train(options) -> int:
    from megatron_music.recipes import load_run

    run = load_run(options.recipe, options.overrides)
    from megatron_music.training.loop import train

    return train(run)


def generate_midi(options) -> None:
    if options.num < 1 or options.batch_size < 1:
        raise ValueError(f"--num is {options.num} and --batch-size {options.batch_size}; both must be 1 or more")
    if options.bars is not None and options.bars < 1:
        raise ValueError(f"--bars is {options.bars}; use 1 or more")
    if options.continued and options.instruments:
        raise ValueError("--instruments does not go with --continue: a continued piece keeps its own")
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the pieces")
    targets = [folder / f"{number:0{max(len(str(options.num)), 3)}}.mid" for number in range(1, options.num + 1)]
    there = [path for path in targets if path.exists()]
    if there:
        raise ValueError(f"{there[0]} is there already; name another folder, or remove it first")
    given = None
    if options.continued:
        from megatron_music.music.midi import read_midi

        given = read_midi(options.continued)
    from megatron_music.generation.sampling import Sampler

    sampler = Sampler(options.temperature, options.top_k, options.top_p)
    from megatron_music.training import distributed
    from megatron_music.training.inference import load_composer

    composer = load_composer(options.checkpoint, distributed.launched_size(), sampler)
    try:
        _write_pieces(options, composer, given, targets, speaks=distributed.is_main())
    finally:
        distributed.stop()


def _write_pieces(options, composer, given, targets: list[Path], speaks: bool) -> None:
    from megatron_music.generation.midi import prepare_continuation
    from megatron_music.music.midi import write_midi

    if given is not None:
        given = prepare_continuation(given, composer.encoding)
    instruments = options.instruments.split(",") if options.instruments else None
    bars = options.bars or composer.encoding.bars
    with progress_bar("piece", options.num) as bar:
        for first in range(0, options.num, options.batch_size):
            seeds = [options.seed + number for number in range(first, min(first + options.batch_size, options.num))]
            tell = lambda tokens: bar.set_postfix(tokens=tokens, refresh=False) or bar.update(0)  # noqa: E731
            if given is None:
                scores = composer.compose(seeds, bars, instruments, tell)
            else:
                scores = composer.continue_scores([given] * len(seeds), bars, seeds, tell)
            for path, score in zip(targets[first:], scores, strict=False):
                if speaks:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_midi(score, path)
            bar.update(len(scores))
    if speaks:
        print(f"{options.num} pieces of {scores[0].num_bars} bars in {options.output}")


def doctor(options) -> int:
    from megatron_music.doctor import as_json, examine

    findings = examine()
    if options.json:
        print(json.dumps(as_json(findings), indent=1))
    else:
        for finding in findings:
            print(f"{finding.status:8} {finding.name:20} {finding.detail}{'; ' + finding.remedy if finding.remedy else ''}")
    return FAILED if any(finding.status == "wrong" for finding in findings) else OK
