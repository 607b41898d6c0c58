"""Text to music in one program: chorales rendered with captions, latents, both stages trained, sounds for five prompts.

    python examples/03_words_to_music.py demo-audio

`make demo-audio` runs this; nothing is downloaded. Run it again to resume. The score at the end asks a
classifier, trained on real renders, whether the sounds have the instrument and the tempo of their prompts, beside
chance, models trained by regression in a quarter of the steps, and what the autoencoder alone leaves of real sounds.
docs/walk-audio.md follows the same steps file by file.
"""

import argparse
import json
import sys
from pathlib import Path

from megatron_music.cli.demo import say, write_corpus
from megatron_music.cli.entry import guarded
from megatron_music.config.log import quiet_dependencies

SOUNDS, SECONDS, SEED = 400, 8.192, 0
PROMPTS = (
    "slow organ music in a minor key",
    "fast flute music, joyful",
    "a moderate piece for strings",
    "quick piano in a high register",
    "slow, solemn brass music",
)
SCORED = 4  # sounds of each instrument and tempo


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets everything")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="change both recipes, e.g. train.train_iters=10"
    )
    parser.add_argument("--sounds", type=int, default=SOUNDS)
    options = parser.parse_args()
    folder = options.folder

    quiet_dependencies()
    say(1, "Bach's chorales from the music21 package, as MIDI", folder / "midi", steps=6)
    write_corpus(folder / "midi")
    say(2, f"{options.sounds} renders in several instruments and tempos, with captions", folder / "audio", steps=6)
    write_sounds(folder / "midi", folder / "audio", options.sounds)
    say(3, "an autoencoder and encoders fitted to them; embeddings and latents", folder / "data", steps=6)
    build(folder / "audio", folder / "data")
    runs = {}
    for number, objective in ((4, "flow"), (5, "regression")):
        for stage in ("text2muq", "dit"):
            runs[objective, stage] = folder / f"{stage}-{objective}"
            say(number, f"{stage} on megatron-core by {objective}", runs[objective, stage], steps=6)
            status = train(stage, objective, folder / "data", runs[objective, stage], options.overrides)
            if status:
                return status
    say(6, f"sounds for {len(PROMPTS)} prompts, and more to be scored", folder / "sounds", steps=6)
    account(folder, runs)
    return 0


def write_sounds(midi: Path, folder: Path, count: int) -> None:
    from megatron_music.cli.console import progress_bar
    from megatron_music.corpora import rendered_sounds

    if (folder / "captions.jsonl").exists():
        return
    with progress_bar("sound", count) as bar:
        for done, _ in rendered_sounds.write_sounds(
            midi, folder, rendered_sounds.SoundOptions(count, SECONDS, seed=SEED, own=True)
        ):
            bar.update(done - bar.n)


def build(audio: Path, data: Path) -> None:
    from megatron_music.cli.console import progress_bar
    from megatron_music.data.build_latents import build_latents
    from megatron_music.data.latents_options import LatentsOptions

    options = LatentsOptions(seconds=SECONDS / 2, valid_fraction=0.1, test_fraction=0.1)
    build_latents(
        audio,
        data,
        options,
        lambda items, total: progress_bar("shard", total, items),
        lambda line: print(f"      {line}"),
    )


def train(stage: str, objective: str, data: Path, run: Path, overrides: list[str]) -> int:
    from megatron_music.config.load import load_run
    from megatron_music.training import loop

    own = [f"data.path={data}", f"checkpoint.save={run}", f"flow.objective={objective}"]
    if objective == "regression":  # it has its mean by then, and later learns samples by heart
        steps = load_run(f"demo-{stage}").train.train_iters // 4
        own += [f"train.train_iters={steps}", f"train.eval_interval={steps // 2}", f"checkpoint.save_interval={steps}"]
    return loop.train(load_run(f"demo-{stage}", [*own, *overrides]))


def account(folder: Path, runs: dict[tuple[str, str], Path]) -> None:
    import numpy as np
    import torch

    from megatron_music.audio.linear_probe import fit_probe
    from megatron_music.audio.music_encoder import features_of
    from megatron_music.audio.waveform import Waveform, read_waveform, write_waveform
    from megatron_music.generation.audio_from_checkpoint import load_sound_maker
    from megatron_music.generation.flow_sampling import FlowSampler
    from megatron_music.parallel import distributed
    from megatron_music.reports.loss_curve import plot_loss
    from megatron_music.reports.spectrogram import plot_spectrograms

    listing = [
        json.loads(line) for line in (folder / "audio" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    frames = round(SECONDS / 2 * 16000)
    real = [Waveform(read_waveform(folder / "audio" / row["path"]).samples[:, :frames], 16000) for row in listing]
    features = np.stack([features_of(sound) for sound in real])
    held_out = np.arange(len(listing)) % 5 == 0
    probes = {
        kind: fit_probe(features[~held_out], [row[kind] for row, out in zip(listing, held_out, strict=True) if not out])
        for kind in ("instrument", "tempo")
    }
    combinations = [(a, b) for a in probes["instrument"].labels for b in probes["tempo"].labels]
    wanted = {
        "instrument": [instrument for instrument, _ in combinations for _ in range(SCORED)],
        "tempo": [tempo for _, tempo in combinations for _ in range(SCORED)],
    }

    def shares(found: "np.ndarray", labels: dict[str, list[str]]) -> dict[str, float]:
        return {kind: probe.accuracy(found, labels[kind]) for kind, probe in probes.items()}

    def of(rows: "np.ndarray") -> dict[str, list[str]]:
        return {kind: [row[kind] for row, is_in in zip(listing, rows, strict=True) if is_in] for kind in probes}

    scores = {"chance": {kind: 1 / len(probe.labels) for kind, probe in probes.items()}}
    clips = folder / "sounds"
    clips.mkdir(exist_ok=True)
    pictures = []
    sampler = FlowSampler(50)
    for objective in ("regression", "flow"):
        maker = load_sound_maker([runs[objective, "text2muq"], runs[objective, "dit"]])
        if objective == "flow":
            with torch.no_grad():
                kept = [real[number].samples for number in np.flatnonzero(held_out)]
                decoded = [
                    maker.autoencoder.decode(maker.autoencoder.encode(torch.from_numpy(each)[None]))[0].numpy()
                    for each in kept
                ]
            scores["autoencoder alone"] = shares(
                np.stack([features_of(Waveform(each, 16000)) for each in decoded]), of(held_out)
            )
            for number, sound in enumerate(maker.make(PROMPTS, 1, SEED, stage1=sampler, stage2=sampler), start=1):
                write_waveform(
                    clips / f"{number:02}.wav", sound.samples, maker.autoencoder.sample_rate, metadata=sound.facts
                )
                pictures.append((sound.prompt, Waveform(sound.samples, maker.autoencoder.sample_rate)))
        prompts = [f"{tempo} {instrument} music" for instrument, tempo in combinations]
        made = [sound.samples for sound in maker.make(prompts, SCORED, SEED + 1, stage1=sampler, stage2=sampler)]
        name = "flow matching" if objective == "flow" else objective
        scores[name] = shares(np.stack([features_of(Waveform(each, 16000)) for each in made]), wanted)
        distributed.stop()
    scores["real, held out"] = shares(features[held_out], of(held_out))
    plot_spectrograms(pictures, folder / "spectrograms.png")
    for stage in ("text2muq", "dit"):
        plot_loss(
            runs["flow", stage] / "metrics.jsonl",
            folder / f"loss-{stage}.png",
            unit="mean squared error of the velocity",
        )
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print(
        f"\nclassified as            instrument   tempo       ({len(wanted['tempo'])} clips per row of models, "
        f"{sum(held_out)} real)"
    )
    for name, score in scores.items():
        print(f"  {name:22}  {score['instrument']:10.0%}  {score['tempo']:6.0%}")
    seconds = {stage: _training_seconds(runs["flow", stage]) for stage in ("text2muq", "dit")}
    print(f"""
training           {seconds["text2muq"]:.0f} s of stage 1, {seconds["dit"]:.0f} s of stage 2
listen             {clips}/01.wav to {len(PROMPTS):02}.wav
look               {folder}/spectrograms.png, loss-text2muq.png, loss-dit.png
next               megatron-music generate audio {runs["flow", "text2muq"]} {runs["flow", "dit"]} -o new --prompt "{PROMPTS[0]}\"""")


def _training_seconds(run: Path) -> float:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sum(row["step_seconds"] for row in rows if "loss" in row)


if __name__ == "__main__":
    sys.exit(guarded(main, ("audio",)))
