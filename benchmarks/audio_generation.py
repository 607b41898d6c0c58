"""Words to sound in batches: time a sample, throughput, speed-up and memory of both stages, and 16 samples end to end.

    python benchmarks/audio_generation.py [--size demo|full] [--json docs/results/audio-generation.json]

Random weights: what is computed does not depend on their values. Stage 1: 50 Euler steps, guidance 3, keys and values
of the words once a request; stage 2: 100 Euler steps, guidance 3, then the autoencoder in chunks. Each figure is the
median of ``--repeats`` after a warm-up, the GPU waited for. ``full`` is 271 M and 1.06 billion parameters, 47.55 s of
44.1 kHz stereo, and wants a GPU; ``demo`` are the sizes of `make demo-audio`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_music.config.log import quiet_dependencies

quiet_dependencies()

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from machine import machine  # noqa: E402

from megatron_music.audio.oobleck import SIZES, OobleckAutoencoder, build_network  # noqa: E402
from megatron_music.audio.spectral_autoencoder import (  # noqa: E402
    CHANNELS,
    SAMPLE_RATE,
    fit_spectral_autoencoder,
)
from megatron_music.config.flow_sizes import DIT_SIZES, TEXT2MUQ_SIZES, num_tokens  # noqa: E402
from megatron_music.config.sections import ParallelConfig  # noqa: E402
from megatron_music.generation.flow_sampling import (  # noqa: E402
    FlowSampler,
    sample_embeddings,
    sample_latents,
)
from megatron_music.models.conditioners import build_conditioned_dit  # noqa: E402
from megatron_music.models.text2muq import build_text2muq  # noqa: E402
from megatron_music.parallel import distributed  # noqa: E402
from megatron_music.profiling.flow_flops import sampling_flops  # noqa: E402

STAGE1_BATCHES, STAGE2_BATCHES, END_TO_END = (1, 4, 8, 16, 32), (1, 4, 16), 16
NAMES = {"demo": ("demo", "demo", "spectral", 32), "full": ("text2muq", "stable-audio-open", "stable-audio-open", 128)}
CHUNK, OVERLAP = 256, 32


class Stages:
    """Both models, the autoencoder, and made-up conditions."""

    def __init__(self, name: str, steps: tuple[int, int]):
        stage1, stage2, autoencoder, self.words = NAMES[name]
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda") if self.on_gpu else torch.device("cpu")
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        distributed.start(ParallelConfig())
        distributed.seed_for_building(0)
        self.text2muq = build_text2muq(TEXT2MUQ_SIZES[stage1], ParallelConfig(), dtype=dtype).to(self.device).eval()
        self.dit = build_conditioned_dit(DIT_SIZES[stage2], ParallelConfig(), dtype=dtype).to(self.device).eval()
        self.autoencoder = new_autoencoder(autoencoder).to(self.device).eval()
        self.samplers = FlowSampler(steps[0]), FlowSampler(steps[1])
        self.frames = DIT_SIZES[stage2].latent_length
        self.seconds = self.frames * self.autoencoder.downsampling / self.autoencoder.sample_rate

    def words_of(self, count: int, size: int) -> dict[str, torch.Tensor]:
        states = torch.randn(count, self.words, size, device=self.device)
        return {"context_BLC": states, "keeps_BL": torch.ones(count, self.words, dtype=torch.bool, device=self.device)}

    def embed(self, numbers: range) -> torch.Tensor:
        size = self.text2muq.size.context_size
        words, null = self.words_of(len(numbers), size), self.words_of(1, size)
        return sample_embeddings(self.text2muq, words, null, 0, numbers, self.samplers[0]).embeddings_BE

    def latents(self, numbers: range, embeddings_BE: torch.Tensor) -> torch.Tensor:
        words = self.words_of(len(numbers), self.dit.size.context_input_size)
        seconds = torch.zeros(len(numbers), device=self.device)
        condition = {
            "text_BLC": words["context_BLC"],
            "keeps_BL": words["keeps_BL"],
            "music_BE": embeddings_BE,
            "seconds_start_B": seconds,
            "seconds_total_B": seconds + self.seconds,
        }
        null = {name: torch.zeros_like(value[:1]) for name, value in condition.items()}
        return sample_latents(self.dit, condition, null, self.frames, 0, numbers, self.samplers[1])

    @torch.no_grad()
    def sound(self, latents_BCT: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.autoencoder.decode_in_chunks(each[None], CHUNK, OVERLAP).cpu() for each in latents_BCT])

    def all(self, numbers: range) -> torch.Tensor:
        return self.sound(self.latents(numbers, self.embed(numbers)))


def new_autoencoder(name: str):
    """With random weights, or fitted to noise: neither changes how long it takes."""
    if name == "spectral":
        noise = np.random.default_rng(0).standard_normal((CHANNELS, 10 * SAMPLE_RATE)).astype(np.float32)
        return fit_spectral_autoencoder([noise])
    return OobleckAutoencoder(build_network(SIZES[name]))


def median_seconds(call: Callable[[], object], repeats: int, on_gpu: bool) -> tuple[float, float]:
    """Median time after a warm-up, and the most memory in GiB: allocated on the GPU, or resident of this process."""
    call()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        _wait(on_gpu)
        begin = time.perf_counter()
        call()
        _wait(on_gpu)
        times.append(time.perf_counter() - begin)
    memory = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    return statistics.median(times), memory / 2**30


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def table(
    title: str, batches: tuple[int, ...], call: Callable[[range], object], flops: float, options, on_gpu: bool
) -> list[dict]:
    """One row a batch size; speed-up is of a sample, against batch 1."""
    print(f"\n{title}\n batch   batch, s   a sample, s   samples/s   speed-up   memory, GiB   TFLOP/s")
    rows = []
    for batch in batches:
        seconds, memory = median_seconds(lambda batch=batch: call(range(batch)), options.repeats, on_gpu)
        rows.append(
            {
                "batch": batch,
                "seconds": seconds,
                "seconds_a_sample": seconds / batch,
                "samples_per_second": batch / seconds,
                "speed_up": (rows[0]["seconds_a_sample"] if rows else seconds) / (seconds / batch),
                "memory_gib": memory,
                "tflops": batch * flops / seconds / 1e12,
            }
        )
        row = rows[-1]
        print(
            f"{batch:6} {seconds:10.3f} {seconds / batch:13.4f} {batch / seconds:11.2f} {row['speed_up']:10.2f} "
            f"{memory:13.2f} {row['tflops']:9.3f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="demo", choices=tuple(NAMES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=2, default=(50, 100), metavar=("STAGE1", "STAGE2"))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    stages = Stages(options.size, tuple(options.steps))
    on_gpu, tokens = stages.on_gpu, num_tokens(stages.dit.size, stages.words, hears_music=True)
    flops1 = sampling_flops(stages.text2muq.size, options.steps[0], frames=1, tokens=stages.words, guided=True)
    flops2 = sampling_flops(stages.dit.size, options.steps[1], frames=stages.frames, tokens=tokens, guided=True)
    result = {
        "command": f"python benchmarks/audio_generation.py --size {options.size} --repeats {options.repeats} "
        f"--steps {options.steps[0]} {options.steps[1]}",
        "machine": machine(),
        "seconds_of_sound": stages.seconds,
        "stage1": table("stage 1: words to embedding", STAGE1_BATCHES, stages.embed, flops1, options, on_gpu),
    }
    embeddings = stages.embed(range(max(STAGE2_BATCHES)))
    result["stage2"] = table(
        f"stage 2: embedding to latents of {stages.seconds:.2f} s",
        STAGE2_BATCHES,
        lambda numbers: stages.latents(numbers, embeddings[: len(numbers)]),
        flops2,
        options,
        on_gpu,
    )
    sequential, _ = median_seconds(lambda: [stages.all(range(n, n + 1)) for n in range(END_TO_END)], 1, on_gpu)
    batched, memory = median_seconds(lambda: stages.all(range(END_TO_END)), 1, on_gpu)
    result["end_to_end"] = {"samples": END_TO_END, "sequential": sequential, "batched": batched, "memory_gib": memory}
    print(
        f"\n{END_TO_END} samples, words to sound: {sequential:.2f} s one by one, {batched:.2f} s batched, "
        f"{sequential / batched:.2f} times"
    )
    distributed.stop()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
