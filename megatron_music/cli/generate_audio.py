"""The command ``generate audio``. Heavy imports happen inside the functions."""

import json
import math
import os
from pathlib import Path

from megatron_music.cli.console import print_result, progress_bar
from megatron_music.cli.generate import digest_of_given
from megatron_music.config.errors import counted
from megatron_music.config.log import LOADING, announce, logger, print_text
from megatron_music.generation.output_folder import OutputFolder, output_folder
from megatron_music.storage.reading import read_text, reason_of


def add_generate_audio(parser) -> None:
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="runs or checkpoints: a dit (stage 2) and, if any, a text2muq (stage 1)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the audio files")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="WORDS", help="description of the audio; may be repeated"
    )
    parser.add_argument("--prompts", default=None, metavar="FILE.txt", help="a file of prompts, one per line")
    parser.add_argument("--num", type=int, default=1, help="samples per prompt")
    parser.add_argument("--seed", type=int, default=0, help="sample k depends on the prompt, the seed and k")
    parser.add_argument("--seconds", type=float, default=None, help="length; by default that of the training samples")
    parser.add_argument("--steps", type=int, default=100, help="solver steps of stage 2")
    parser.add_argument("--solver", default="euler", help="solver of stage 2: euler, midpoint, heun, rk4 or dopri5")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=3.0,
        metavar="X",
        help="strength of classifier-free guidance in stage 2; 1: no guidance",
    )
    parser.add_argument("--shift", type=float, default=1.0, metavar="X", help="above 1: more steps at high noise")
    parser.add_argument("--embedding-steps", type=int, default=50, metavar="N", help="solver steps of stage 1")
    parser.add_argument(
        "--embedding-guidance-scale",
        type=float,
        default=3.0,
        metavar="X",
        help="strength of classifier-free guidance in stage 1; 1: no guidance",
    )
    parser.add_argument("--negative", default="", metavar="WORDS", help="negative prompt: what to avoid")
    parser.add_argument("--towards", default="", metavar="WORDS", help="a second prompt, to interpolate to")
    parser.add_argument("--share", type=float, default=0.5, metavar="X", help="with --towards: how far, 0 to 1")
    parser.add_argument(
        "--from", dest="source", default=None, metavar="FILE.wav", help="an audio file to continue, fill or vary"
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="A-B", help="with --from: seconds that stay as they are"
    )
    parser.add_argument(
        "--variation", type=float, default=None, metavar="X", help="with --from: how much changes, 0 to 1"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=None,
        metavar="N",
        help="samples at a time in stage 2; by default what memory allows",
    )
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
    width = max(len(str(len(prompts))), 2)
    names = [
        f"{p:0{width}}-{n:03}.{options.format}" for p in range(1, len(prompts) + 1) for n in range(1, options.num + 1)
    ]
    holds = os.environ.get("RANK", "0") == "0"
    with output_folder(options.output, "generate audio", names, _settings(options, prompts), holds=holds) as output:
        if not output.found and (output.folder / _LIST).exists():
            raise ValueError(f"{output.folder / _LIST} is there already; name another folder, or remove it first")
        from megatron_music.generation.audio_from_checkpoint import load_sound_maker
        from megatron_music.parallel import distributed

        try:
            maker = load_sound_maker(options.checkpoints, averaged=not options.last_weights)
            if options.rank and maker.music_encoder is None:
                raise ValueError(
                    "--rank compares sounds with words, and this model has no encoder of music; omit --rank"
                )
            missing = distributed.on_main(lambda: output.missing(maker.models))
            sounds = maker.make(
                prompts,
                options.num,
                options.seed,
                seconds=options.seconds,
                stage1=stage1,
                stage2=stage2,
                negative=options.negative,
                towards=options.towards,
                share=options.share if options.towards else 0.0,
                given=_given(options, maker.autoencoder),
                batch_size=options.batch_size or output.found.get("batch_size"),
                free_bytes=_free_bytes(),
                missing=set(missing),
            )
            _write_sounds(
                options, sounds if missing else (), output, missing, maker, prompts, speaks=distributed.is_main()
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; the sounds in {options.output} are whole, and the same command goes on"
            ) from None
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise ValueError(
                "memory is out; use a shorter --seconds, a smaller --batch-size or fewer samples at a time"
            ) from None
        finally:
            distributed.stop()


def _settings(options, prompts: list[str]) -> dict:
    """What the audio follows from, beside the models."""
    names = (
        "num",
        "seed",
        "seconds",
        "steps",
        "solver",
        "guidance_scale",
        "shift",
        "embedding_steps",
        "embedding_guidance_scale",
        "negative",
        "towards",
        "share",
        "keep",
        "variation",
        "rank",
        "last_weights",
        "format",
        "bits",
    )
    given = {"given_sha256": digest_of_given(options.source)}
    own_batches = (
        {"batch_size": options.batch_size} if options.batch_size else {}
    )  # else what the first command found to fit
    return {name: getattr(options, name) for name in names} | {"prompts": prompts} | given | own_batches


_LIST = "sounds.jsonl"
LEAST_CLIPPED = 1e-3  # of a sound's samples: from there on it is said


def _prompts(options) -> list[str]:
    if options.num < 1:
        raise ValueError(f"--num is {options.num}; use 1 or more")
    prompts = list(options.prompt)
    if options.prompts:
        try:
            lines = read_text(options.prompts).splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{options.prompts} cannot be read as text ({reason_of(error)}); write one prompt a line"
            ) from None
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
        raise ValueError(
            "--from needs either --keep A-B, the seconds that stay, or --variation X, how much is made anew"
        )
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
            _say(
                f"the model does not know {counted(len(unknown), 'word')} of the prompt {prompt[:60]!r}: "
                f"{', '.join(unknown[:8])}"
            )


def _facts_of(path: Path, is_ranked: bool) -> dict:
    """What an earlier command wrote into an audio file about how it was made.

    Raises:
        ValueError: it has nothing of the kind: another file has taken its name.
    """
    from megatron_music.audio.waveform import read_metadata

    facts = read_metadata(path)
    if not isinstance(facts.get("prompt"), str) or (is_ranked and not isinstance(facts.get("similarity"), float)):
        raise ValueError(f"{path} is not the file that this command made; move it away and give the same command again")
    return facts


def _write_sounds(
    options, sounds, output: OutputFolder, missing: list[int], maker, prompts: list[str], speaks: bool
) -> None:
    from megatron_music.audio.waveform import Waveform, write_waveform
    from megatron_music.storage.writing import write_whole

    folder, rate, found, loud = output.folder, maker.autoencoder.sample_rate, {}, 0
    said = not speaks
    with progress_bar("sound", len(output.names)) as bar:
        bar.update(len(output.names) - len(missing))
        for place, sound in zip(missing, sounds, strict=True):
            name = output.names[place]
            if not said:  # here, since what is asked wrongly has been refused by now
                bar.clear()
                _say_unknown_words(
                    [*prompts, *filter(None, (options.negative.strip(), options.towards.strip()))], maker
                )
                said = True
            clipped = int((abs(sound.samples) > 1).sum())
            facts = sound.facts | {"clipped_samples": clipped}
            loud += clipped > LEAST_CLIPPED * sound.samples.size
            if options.rank:
                heard = maker.music_encoder.embed_audio([Waveform(sound.samples, rate)])[0]
                facts = facts | {
                    "similarity": round(float(heard @ maker.music_encoder.embed_text([sound.prompt])[0]), 4)
                }
            if speaks:
                output.settings["batch_size"] = facts["batch_size"]
                output.keep_record()
                write_waveform(folder / name, sound.samples, rate, bits=options.bits, metadata=facts)
            found[place] = facts
            bar.update(1)
    if not speaks:
        return
    lines = [
        {"file": name, **(found.get(place) or _facts_of(folder / name, options.rank))}
        for place, name in enumerate(output.names)
    ]
    if options.rank:
        order = list(dict.fromkeys(line["prompt"] for line in lines))
        lines.sort(key=lambda line: (order.index(line["prompt"]), -line["similarity"]))
        for line in lines if not options.json else ():
            print_text(f"{line['similarity']:7.3f}  {line['file']}  {line['prompt']}")
    write_whole(folder / _LIST, "".join(json.dumps(line) + "\n" for line in lines).encode())
    if loud:
        most = max(facts["clipped_samples"] for facts in found.values())
        _say(
            f"{loud} of {counted(len(missing), 'sound')} {'is' if loud == 1 else 'are'} too loud and "
            f"{'was' if loud == 1 else 'were'} clipped, one in {most:,} samples; lower --guidance-scale, or see "
            f"clipped_samples in {folder / _LIST}"
        )
    there = len(output.names) - len(missing)
    sentence = f"{counted(len(missing), 'sound')} in {folder}" + (
        f"; {there} more {'was' if there == 1 else 'were'} there" if there else ""
    )
    if not missing:
        sentence = f"already generated: {counted(there, 'sound')} in {folder}; nothing to do"
    print_result(options, {"output": str(folder), "samples": lines}, sentence)
