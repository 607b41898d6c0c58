"""The audio commands, one function each: rendering, datasets of latents, text-to-music. Heavy imports happen inside the functions."""

import json
import math
import os
from dataclasses import fields
from pathlib import Path

from megatron_music.commands import check_output_file, progress_bar, progress_over
from megatron_music.counted import counted
from megatron_music.errors import either
from megatron_music.output import LOADING, announce, is_quiet, logger, print_next, print_result

_OTHER_SUFFIXES = (".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".mid", ".midi", ".kar", ".html", ".json", ".txt")


def add_render(parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE.mid", help="MIDI files, or folders of them")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.wav|DIR", help="a WAV or FLAC file for one piece; a folder for several")
    parser.add_argument("--html", default=None, metavar="PAGE.html", help="write a page with a player and a moving piano roll for each piece")
    parser.add_argument("--sound-font", default=None, metavar="FILE.sf2", help="for FluidSynth; by default $SOUND_FONT or the system's")
    parser.add_argument("--own", action="store_true", help="use this package's synthesiser whatever is installed")
    parser.add_argument("--sample-rate", type=int, default=44100, metavar="HZ", help="samples per second, 4000 to 192000")
    parser.add_argument("--bits", type=int, default=16, choices=(16, 24), help="bits per sample")
    parser.add_argument("--json", action="store_true", help="print the files written as JSON")


def render(options) -> None:
    from megatron_music.audio.listening import render_files, write_listening_page

    if not 4000 <= options.sample_rate <= 192000:
        raise ValueError(f"--sample-rate is {options.sample_rate}; use 4000 to 192000 Hz")
    if options.html:
        check_output_file(options.html, (".html",))
    files = _render_targets(options.files, Path(options.output))
    pieces, on_page, left_out, targets = [], [], [], dict(files)
    with progress_bar("piece", len(files)) as bar:

        def leave_out(midi: Path, reason: str) -> None:
            left_out.append({"file": str(midi), "reason": reason})
            bar.update(1)

        rendered = render_files(
            files, options.sample_rate, options.sound_font, own=options.own, bits=options.bits,
            on_failure=leave_out if len(files) > 1 else None,
        )
        for piece in rendered:
            pieces.append({"file": str(targets[piece.path]), "seconds": piece.waveform.seconds, "synthesiser": piece.synthesiser})
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
    print_result(options, {"output": options.output, "page": options.html, "pieces": pieces, "left_out": left_out}, sentence)
    if options.html:
        print_next(options, f"open {options.html} in a browser")


def _render_targets(names: list[str], output: Path) -> list[tuple[Path, Path]]:
    """(MIDI file, audio file) of every piece: into one file, or into a folder under the MIDI file's name.

    Raises:
        ValueError: a path that does not exist, a folder without MIDI files, several pieces for one file, or two pieces of one name.
    """
    from megatron_music.audio.waveform import SUFFIXES
    from megatron_music.data.archives import MIDI_SUFFIXES

    found = []
    for path in map(Path, names):
        if not path.exists():
            raise ValueError(f"{path} does not exist; name a MIDI file, or a folder of them")
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in MIDI_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no MIDI files; name a folder with {either(MIDI_SUFFIXES)} files")
        found += inside
    if output.suffix.lower() in SUFFIXES and not output.is_dir():
        if len(found) > 1:
            raise ValueError(f"{len(found)} pieces do not fit in one file; name a folder with -o")
        check_output_file(str(output), SUFFIXES)
        return [(found[0], output)]
    if output.exists() and not output.is_dir() or (not output.exists() and output.suffix.lower() in _OTHER_SUFFIXES):
        raise ValueError(f"{output} does not end in {' or '.join(SUFFIXES)} and is not a folder; name one of these")
    targets = [output / f"{path.stem}.wav" for path in found]
    twice = next((target for number, target in enumerate(targets) if target in targets[:number]), None)
    if twice:
        raise ValueError(f"two pieces would become {twice}; render them into separate folders")
    return list(zip(found, targets, strict=True))


def add_corpus_sounds(parser) -> None:
    parser.add_argument("midi_dir", metavar="MIDI_DIR", help="folder of MIDI files")
    parser.add_argument("-o", "--output", required=True, metavar="AUDIO_DIR", help="folder for the audio files and captions")
    parser.add_argument("--num", type=int, default=400, help="audio files")
    parser.add_argument("--seconds", type=float, default=8.2, help="length of each audio file")
    parser.add_argument("--sample-rate", type=int, default=16000, metavar="HZ", help="samples per second")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of instruments, tempos and excerpts")
    parser.add_argument("--own", action="store_true", help="use this package's synthesiser whatever is installed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def corpus_sounds(options) -> None:
    from megatron_music.counted import counted
    from megatron_music.data.sounds import SoundOptions, write_sounds

    made = SoundOptions(options.num, options.seconds, options.sample_rate, options.seed, options.own)
    with progress_bar("sound", options.num) as bar:
        for done, _ in write_sounds(options.midi_dir, options.output, made):
            bar.update(done - bar.n)
    result = {"output": options.output, "audio_files": options.num}
    print_result(options, result, f"{counted(options.num, 'sound')} with captions in {options.output}")
    print_next(options, f"megatron-music build latents {options.output} -o data")


_LATENTS_HELP = {
    "seconds": "length of a training sample",
    "autoencoder": "the folder of an autoencoder; or one to fit to your audio: spectral, or an Oobleck (tiny, small, stable-audio-open)",
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

    parser.add_argument("audio_dir", metavar="AUDIO_DIR", help="a folder with captions.csv or captions.jsonl; or MusicBench, or Music4All")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the dataset's folder")
    for item in fields(LatentsOptions):
        name = f"--{item.name.replace('_', '-')}"
        parser.add_argument(name, type=item.type, default=item.default, help=f"{_LATENTS_HELP[item.name]} (%(default)s)")
    parser.add_argument("--rank", type=int, default=None, metavar="R", help="number of this process, from 0, among those that share the work; under torchrun it is known")
    parser.add_argument("--world-size", type=int, default=None, metavar="W", help="number of processes that share the work")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def build_latents(options) -> None:
    announce(LOADING)
    from megatron_music.data.build_latents import build_latents
    from megatron_music.data.latents_options import LatentsOptions

    wanted = LatentsOptions(**{item.name: getattr(options, item.name) for item in fields(LatentsOptions)})
    rank, world_size, launched = _share(options)
    silent = options.json or is_quiet() or (launched and rank)  # under torchrun one process speaks
    was_there = Path(options.output).exists()
    say = (lambda line: None) if silent else (lambda line: print(line, flush=True))
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
            _say(f"rank {rank}: {error}")
        raise
    if report is None:
        say(f"rank {rank} of {world_size} has encoded its shards; the rank that finishes last writes {options.output}")
        return
    if launched and rank and was_there:
        return
    unread = report.get("captions_of_unknown_words", {"count": 0})
    if unread["count"]:
        _say(
            f"{unread['count']:,} of {report['captions']:,} captions hold no word that the text encoder knows, such as "
            f"{unread['first'][:60]!r}; a model learns nothing from them"
        )
    samples = ", ".join(f"{count:,} {split}" for split, count in report["samples"].items())
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in report["left_out"].items())
    lines = {
        "samples": f"{samples}, of {report['seconds_a_sample']:.3f} s, with {counted(report['captions'], 'caption')}",
        "sounds": f"{report['sounds']['listed']:,} listed, {report['sounds']['left_out']:,} left out" + (f" ({reasons})" if reasons else ""),
        **{kind: encoder["name"] for kind, encoder in report["encoders"].items()},
        "in": options.output,
    }
    already = f"already built: {options.output}; nothing to do\n" if was_there else ""
    print_result(options, report, already + "\n".join(f"{name:13}{line}" for name, line in lines.items()))
    for stage, name in (("text2muq", "STAGE1"), ("dit", "STAGE2")):
        print_next(options, f"megatron-music train demo-{stage} data.path={options.output} checkpoint.save={name}")


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


def add_generate_audio(parser) -> None:
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="runs or checkpoints: a dit (stage 2) and, if any, a text2muq (stage 1)")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the audio files")
    parser.add_argument("--prompt", action="append", default=[], metavar="WORDS", help="description of the audio; may be repeated")
    parser.add_argument("--prompts", default=None, metavar="FILE.txt", help="a file of prompts, one per line")
    parser.add_argument("--num", type=int, default=1, help="samples per prompt")
    parser.add_argument("--seed", type=int, default=0, help="sample k depends on the prompt, the seed and k")
    parser.add_argument("--seconds", type=float, default=None, help="length; by default that of the training samples")
    parser.add_argument("--steps", type=int, default=100, help="solver steps of stage 2")
    parser.add_argument("--solver", default="euler", help="solver of stage 2: euler, midpoint, heun, rk4 or dopri5")
    parser.add_argument("--guidance-scale", type=float, default=3.0, metavar="X", help="strength of classifier-free guidance in stage 2; 1: no guidance")
    parser.add_argument("--shift", type=float, default=1.0, metavar="X", help="above 1: more steps at high noise")
    parser.add_argument("--embedding-steps", type=int, default=50, metavar="N", help="solver steps of stage 1")
    parser.add_argument("--embedding-guidance-scale", type=float, default=3.0, metavar="X", help="strength of classifier-free guidance in stage 1; 1: no guidance")
    parser.add_argument("--negative", default="", metavar="WORDS", help="negative prompt: what to avoid")
    parser.add_argument("--towards", default="", metavar="WORDS", help="a second prompt, to interpolate to")
    parser.add_argument("--share", type=float, default=0.5, metavar="X", help="with --towards: how far, 0 to 1")
    parser.add_argument("--from", dest="source", default=None, metavar="FILE.wav", help="an audio file to continue, fill or vary")
    parser.add_argument("--keep", action="append", default=[], metavar="A-B", help="with --from: seconds that stay as they are")
    parser.add_argument("--variation", type=float, default=None, metavar="X", help="with --from: how much changes, 0 to 1")
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="samples at a time in stage 2; by default what memory allows")
    parser.add_argument("--rank", action="store_true", help="list the samples of a prompt, best match first")
    parser.add_argument("--json", action="store_true", help="print the samples and what they were made with as JSON")
    parser.add_argument("--last-weights", action="store_true", help="use the last weights instead of their average")
    parser.add_argument("--format", default="wav", choices=("wav", "flac"), help="format of the audio files")
    parser.add_argument("--bits", type=int, default=16, choices=(16, 24), help="bits per sample")


def generate_audio(options) -> None:
    prompts = _prompts(options)
    announce(LOADING)
    from megatron_music.generation.flow_sampling import FlowSampler

    stage1 = FlowSampler(options.embedding_steps, guidance_scale=options.embedding_guidance_scale)
    stage2 = FlowSampler(options.steps, options.solver, options.guidance_scale, shift=options.shift)
    _check_source(options)
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the sounds")
    width = max(len(str(len(prompts))), 2)
    names = [f"{p:0{width}}-{n:03}.{options.format}" for p in range(1, len(prompts) + 1) for n in range(1, options.num + 1)]
    there = [name for name in (*names, _LIST) if (folder / name).exists()]
    if there:
        raise ValueError(f"{folder / there[0]} is there already; name another folder, or remove it first")
    from megatron_music.training import distributed
    from megatron_music.training.sound import load_sound_maker

    try:
        maker = load_sound_maker(options.checkpoints, averaged=not options.last_weights)
        if options.rank and maker.music_encoder is None:
            raise ValueError("--rank compares sounds with words, and this model has no encoder of music; omit --rank")
        sounds = maker.make(
            prompts, options.num, options.seed, seconds=options.seconds, stage1=stage1, stage2=stage2,
            negative=options.negative, towards=options.towards, share=options.share if options.towards else 0.0,
            given=_given(options, maker.autoencoder), batch_size=options.batch_size, free_bytes=_free_bytes(),
        )  # fmt: skip
        _write_sounds(options, sounds, names, maker, prompts, speaks=distributed.is_main())
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ValueError("memory is out; use a shorter --seconds, a smaller --batch-size or fewer samples at a time") from None
    finally:
        distributed.stop()


_LIST = "sounds.jsonl"
LEAST_CLIPPED = 1e-3  # of a sound's samples: from there on it is said


def _prompts(options) -> list[str]:
    if options.num < 1:
        raise ValueError(f"--num is {options.num}; use 1 or more")
    prompts = list(options.prompt)
    if options.prompts:
        try:
            lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{options.prompts} cannot be read as text ({error}); write one prompt a line") from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts or not all(prompt.strip() for prompt in prompts):
        what = "a prompt is empty" if prompts else "no prompt was given"
        raise ValueError(f'{what}; describe the audio in words, as in --prompt "slow organ music"')
    return prompts


def _check_source(options) -> None:
    """Refuse options that contradict the sound that is given."""
    wanted = {"--keep": options.keep, "--variation": options.variation is not None}
    wrong = [name for name, is_set in wanted.items() if is_set and not options.source]
    if wrong:
        raise ValueError(f"{wrong[0]} goes with --from, the sound to keep something of; name it")
    if options.source and bool(options.keep) == (options.variation is not None):
        raise ValueError("--from needs either --keep A-B, the seconds that stay, or --variation X, how much is made anew")
    if options.variation is not None and not 0 < options.variation <= 1:
        raise ValueError(f"--variation is {options.variation}; use more than 0, up to 1")
    options.keep = tuple(map(_seconds, options.keep))
    if not 0 <= options.share <= 1:
        raise ValueError(f"--share is {options.share}; use 0 to 1")


def _given(options, autoencoder):
    """The sound to keep something of, as the autoencoder takes it."""
    if not options.source:
        return None
    from megatron_music.audio.reading import read_quietly
    from megatron_music.audio.waveform import resampled, with_channels
    from megatron_music.generation.audio import Given

    found = resampled(with_channels(read_quietly(options.source), autoencoder.channels), autoencoder.sample_rate)
    return Given(found.samples, options.keep, 1.0 if options.variation is None else options.variation)


def _seconds(text: str) -> tuple[float, float]:
    first, _, last = text.partition("-")
    try:
        begin, end = float(first), float(last)
    except ValueError:
        begin, end = 0.0, 0.0
    if not 0 <= begin < end < math.inf:
        raise ValueError(f"--keep {text} is no stretch of seconds; write it as 0-2.5")
    return begin, end


def _free_bytes() -> int:
    import psutil
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _say(sentence: str) -> None:
    logger.warning(sentence)


def _say_unknown_words(prompts: list[str], maker) -> None:
    """Name the words of prompts that the model has never seen."""
    for prompt in dict.fromkeys(prompts):
        unknown = maker.unknown_words(prompt)
        if unknown:
            _say(f"the model does not know {counted(len(unknown), 'word')} of the prompt {prompt[:60]!r}: {', '.join(unknown[:8])}")


def _write_sounds(options, sounds, names: list[str], maker, prompts: list[str], speaks: bool) -> None:
    from megatron_music.audio.waveform import Waveform, write_waveform
    from megatron_music.counted import counted
    from megatron_music.storage.writing import write_whole

    folder, rate, lines, loud = Path(options.output), maker.autoencoder.sample_rate, [], 0
    said = not speaks
    with progress_bar("sound", len(names)) as bar:
        for name, sound in zip(names, sounds, strict=True):
            if not said:  # here, since what is asked wrongly has been refused by now
                bar.clear()
                _say_unknown_words([*prompts, *filter(None, (options.negative.strip(), options.towards.strip()))], maker)
                said = True
            clipped = int((abs(sound.samples) > 1).sum())
            facts = sound.facts | {"clipped_samples": clipped}
            loud += clipped > LEAST_CLIPPED * sound.samples.size
            if options.rank:
                heard = maker.music_encoder.embed_audio([Waveform(sound.samples, rate)])[0]
                facts = facts | {"similarity": round(float(heard @ maker.music_encoder.embed_text([sound.prompt])[0]), 4)}
            if speaks:
                folder.mkdir(parents=True, exist_ok=True)
                write_waveform(folder / name, sound.samples, rate, bits=options.bits, metadata=facts)
            lines.append({"file": name, **facts})
            bar.update(1)
    if not speaks:
        return
    if options.rank:
        order = list(dict.fromkeys(line["prompt"] for line in lines))
        lines.sort(key=lambda line: (order.index(line["prompt"]), -line["similarity"]))
        for line in lines if not options.json else ():
            print(f"{line['similarity']:7.3f}  {line['file']}  {line['prompt']}")
    write_whole(folder / _LIST, "".join(json.dumps(line) + "\n" for line in lines).encode())
    if loud:
        most = max(line["clipped_samples"] for line in lines)
        _say(
            f"{loud} of {counted(len(names), 'sound')} {'is' if loud == 1 else 'are'} too loud and {'was' if loud == 1 else 'were'} clipped, one in {most:,} samples; lower --guidance-scale, or see "
            f"clipped_samples in {folder / _LIST}"
        )
    print_result(options, {"output": str(folder), "samples": lines}, f"{counted(len(names), 'sound')} in {folder}")
