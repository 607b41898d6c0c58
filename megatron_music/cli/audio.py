"""The audio commands, one function each: rendering, datasets of latents, text-to-music.

Heavy imports happen inside the functions.
"""

import os
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from megatron_music.cli.console import (
    check_output_file,
    print_next,
    print_result,
    progress_bar,
    progress_over,
)
from megatron_music.config.errors import counted, either
from megatron_music.config.log import (
    LOADING,
    announce,
    command_line,
    is_quiet,
    logger,
    print_text,
)

_OTHER_SUFFIXES = (
    ".mp3",
    ".ogg",
    ".opus",
    ".m4a",
    ".aac",
    ".aif",
    ".aiff",
    ".wma",
    ".mid",
    ".midi",
    ".kar",
    ".html",
    ".json",
    ".txt",
)


def add_render(parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE.mid", help="MIDI files, or folders of them")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.wav|DIR",
        help="a WAV or FLAC file for one piece; a folder for several",
    )
    parser.add_argument(
        "--html",
        default=None,
        metavar="PAGE.html",
        help="write a page with a player and a moving piano roll for each piece",
    )
    parser.add_argument(
        "--sound-font", default=None, metavar="FILE.sf2", help="for FluidSynth; by default $SOUND_FONT or the system's"
    )
    parser.add_argument("--own", action="store_true", help="use this package's synthesiser whatever is installed")
    parser.add_argument(
        "--sample-rate", type=int, default=44100, metavar="HZ", help="samples per second, 4000 to 192000"
    )
    parser.add_argument("--bits", type=int, default=16, choices=(16, 24), help="bits per sample")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=3600.0,
        metavar="S",
        help="longest piece that is rendered; an hour takes about 5 GiB of memory",
    )
    parser.add_argument("--json", action="store_true", help="print the files written as JSON")


def render(options) -> None:
    from megatron_music.audio.listening import render_files, write_listening_page
    from megatron_music.storage.holding import hold_folder

    if not 4000 <= options.sample_rate <= 192000:
        raise ValueError(f"--sample-rate is {options.sample_rate}; use 4000 to 192000 Hz")
    if not options.max_seconds > 0:
        raise ValueError(f"--max-seconds is {options.max_seconds:g}; use more than 0")
    if options.html:
        check_output_file(options.html, (".html",))
    files = _render_targets(options.files, Path(options.output))
    pieces, on_page, left_out, targets = [], [], [], dict(files)
    folder = Path(options.output)
    fills_folder = files[0][1] != folder
    held = hold_folder(folder, "render", [target.name for _, target in files]) if fills_folder else nullcontext()
    with held, progress_bar("piece", len(files)) as bar:

        def leave_out(midi: Path, reason: str) -> None:
            left_out.append({"file": str(midi), "reason": reason})
            bar.update(1)

        rendered = render_files(
            files,
            options.sample_rate,
            options.sound_font,
            own=options.own,
            bits=options.bits,
            max_seconds=options.max_seconds,
            on_failure=leave_out if len(files) > 1 else None,
        )
        for piece in rendered:
            pieces.append(
                {"file": str(targets[piece.path]), "seconds": piece.waveform.seconds, "synthesiser": piece.synthesiser}
            )
            on_page += [piece] if options.html else []
            bar.update(1)
    if not pieces:
        raise ValueError(f"none of {len(files)} files could be rendered; the first: {left_out[0]['reason']}")
    for entry in left_out:
        logger.warning(f"skipped: {entry['reason']}")
    if options.html:
        write_listening_page(options.html, Path(options.html).stem, "Rendered from MIDI.", on_page)
    seconds = sum(piece["seconds"] for piece in pieces)
    synthesisers = " and ".join(sorted({piece["synthesiser"] for piece in pieces}))
    sentence = f"{counted(len(pieces), 'piece')}, {seconds:.1f} s by {synthesisers} in {options.output}"
    sentence += f"; page: {options.html}" if options.html else ""
    sentence += f"\n{len(left_out)} of {counted(len(files), 'file')} skipped" if left_out else ""
    print_result(
        options, {"output": options.output, "page": options.html, "pieces": pieces, "left_out": left_out}, sentence
    )
    if options.html:
        print_next(options, f"open {options.html} in a browser")


def _render_targets(names: list[str], output: Path) -> list[tuple[Path, Path]]:
    """(MIDI file, audio file) of every piece: into one file, or into a folder under the MIDI file's name.

    Raises:
        ValueError: a path that does not exist, a folder without MIDI files, several pieces for one file, or two pieces
            of one name.
    """
    from megatron_music.audio.waveform import SUFFIXES
    from megatron_music.corpora.archives import MIDI_SUFFIXES

    found = []
    for path in map(Path, names):
        if not path.exists():
            raise ValueError(f"{path} does not exist; name a MIDI file, or a folder of them")
        inside = (
            sorted(file for file in path.iterdir() if file.suffix.lower() in MIDI_SUFFIXES) if path.is_dir() else [path]
        )
        if not inside:
            raise ValueError(f"{path} holds no MIDI files; name a folder with {either(MIDI_SUFFIXES)} files")
        found += inside
    if output.suffix.lower() in SUFFIXES and not output.is_dir():
        if len(found) > 1:
            raise ValueError(f"{len(found)} pieces do not fit in one file; name a folder with -o")
        check_output_file(str(output), SUFFIXES)
        return [(found[0], output)]
    if (output.exists() and not output.is_dir()) or (not output.exists() and output.suffix.lower() in _OTHER_SUFFIXES):
        raise ValueError(f"{output} does not end in {' or '.join(SUFFIXES)} and is not a folder; name one of these")
    targets = [output / f"{path.stem}.wav" for path in found]
    twice = next((target for number, target in enumerate(targets) if target in targets[:number]), None)
    if twice:
        raise ValueError(f"two pieces would become {twice}; render them into separate folders")
    return list(zip(found, targets, strict=True))


def add_corpus_sounds(parser) -> None:
    parser.add_argument("midi_dir", metavar="MIDI_DIR", help="folder of MIDI files")
    parser.add_argument(
        "-o", "--output", required=True, metavar="AUDIO_DIR", help="folder for the audio files and captions"
    )
    parser.add_argument("--num", type=int, default=400, help="audio files")
    parser.add_argument("--seconds", type=float, default=8.2, help="length of each audio file")
    parser.add_argument("--sample-rate", type=int, default=16000, metavar="HZ", help="samples per second")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of instruments, tempos and excerpts")
    parser.add_argument("--own", action="store_true", help="use this package's synthesiser whatever is installed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def corpus_sounds(options) -> None:
    from megatron_music.config.errors import counted
    from megatron_music.corpora.rendered_sounds import (
        MADE_WITH,
        SoundOptions,
        write_sounds,
    )
    from megatron_music.storage.holding import hold_folder

    made = SoundOptions(options.num, options.seconds, options.sample_rate, options.seed, options.own)
    names = [f"{number:05}.flac" for number in range(options.num)]
    with (
        hold_folder(options.output, "corpus sounds", [*names, "captions.jsonl", MADE_WITH]),
        progress_bar("sound", options.num) as bar,
    ):
        for done, _ in write_sounds(options.midi_dir, options.output, made):
            bar.update(done - bar.n)
    result = {"output": options.output, "audio_files": options.num}
    print_result(options, result, f"{counted(options.num, 'sound')} with captions in {options.output}")
    print_next(options, command_line("build", "latents", options.output, "-o", "data"))


_LATENTS_HELP = {
    "seconds": "length of a training sample",
    "autoencoder": "the folder of an autoencoder; or one to fit to your audio: spectral, or an Oobleck (tiny, small, "
    "stable-audio-open)",
    "autoencoder_steps": "training steps of an Oobleck",
    "music_encoder": "small to fit one; muq:PYTHON for MuQ-MuLan (weights CC-BY-NC-4.0) in that Python; or a folder",
    "text_encoder": "words to fit one; or a Hugging Face folder or hub name, such as google-t5/t5-base",
    "min_seconds": "shorter files are skipped",
    "crops_per_file": "most training samples from one file; 0: no limit",
    "files_per_shard": "audio files per shard",
    "valid_fraction": "share of the files for validation",
    "test_fraction": "share of the files for testing",
    "seed": "seed of the splits and of the fitted encoders",
}


def add_build_latents(parser) -> None:
    from megatron_music.data.latents_options import LatentsOptions

    parser.add_argument(
        "audio_dir",
        metavar="AUDIO_DIR",
        help="a folder with captions.csv or captions.jsonl; or MusicBench, or Music4All",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the dataset's folder")
    for item in fields(LatentsOptions):
        name = f"--{item.name.replace('_', '-')}"
        parser.add_argument(
            name, type=item.type, default=item.default, help=f"{_LATENTS_HELP[item.name]} (%(default)s)"
        )
    parser.add_argument(
        "--rank",
        type=int,
        default=None,
        metavar="R",
        help="number of this process, from 0, among those that share the work; under torchrun it is known",
    )
    parser.add_argument(
        "--world-size", type=int, default=None, metavar="W", help="number of processes that share the work"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def build_latents(options) -> None:
    announce(LOADING)
    from megatron_music.data.build_latents import build_latents
    from megatron_music.data.latents_options import LatentsOptions

    wanted = LatentsOptions(**{item.name: getattr(options, item.name) for item in fields(LatentsOptions)})
    rank, world_size, launched = _share(options)
    silent = options.json or is_quiet() or (launched and rank)  # under torchrun one process speaks
    was_there = Path(options.output).exists()
    say = (lambda line: None) if silent else print_text
    progress = (lambda items, total: items) if launched and rank else progress_over("sound")
    try:
        report = build_latents(
            options.audio_dir, options.output, wanted, progress, say, rank=rank, world_size=world_size, device=_device()
        )
    except KeyboardInterrupt:
        sentence = f"stopped; what is finished is kept in {options.output}.building, and the same command goes on"
        raise KeyboardInterrupt(sentence) from None
    except ValueError as error:
        if launched and rank:  # each rank has sounds of its own, and only the first one's errors are printed otherwise
            logger.warning(f"rank {rank}: {error}")
        raise
    if report is None:
        say(f"rank {rank} of {world_size} has encoded its shards; the rank that finishes last writes {options.output}")
        return
    if launched and rank and was_there:
        return
    unread = report.get("captions_of_unknown_words", {"count": 0})
    if unread["count"]:
        logger.warning(
            f"{unread['count']:,} of {report['captions']:,} captions hold no word that the text encoder knows, such as "
            f"{unread['first'][:60]!r}; a model learns nothing from them"
        )
    samples = ", ".join(f"{count:,} {split}" for split, count in report["samples"].items())
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in report["left_out"].items())
    lines = {
        "samples": f"{samples}, of {report['seconds_a_sample']:.3f} s, with {counted(report['captions'], 'caption')}",
        "sounds": f"{report['sounds']['listed']:,} listed, {report['sounds']['left_out']:,} left out"
        + (f" ({reasons})" if reasons else ""),
        **{kind: encoder["name"] for kind, encoder in report["encoders"].items()},
        "in": options.output,
    }
    already = f"already built: {options.output}; nothing to do\n" if was_there else ""
    print_result(options, report, already + "\n".join(f"{name:13}{line}" for name, line in lines.items()))
    for stage, name in (("text2muq", "STAGE1"), ("dit", "STAGE2")):
        print_next(
            options, command_line("train", f"demo-{stage}", f"data.path={options.output}", f"checkpoint.save={name}")
        )


def _share(options) -> tuple[int, int, bool]:
    """This process's rank and how many there are, and whether a launcher says so and not the user."""
    if (options.rank is None) != (options.world_size is None):
        raise ValueError("--rank and --world-size go together: which process this is, of how many; give both")
    if options.rank is not None:
        return options.rank, options.world_size, False
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), True
    return 0, 1, False


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
