"""Words to sound: prompts through both stages and the autoencoder, in batches that memory allows.

Takes models and encoders that are loaded. Sample i of a prompt depends on the prompt, the seed and i alone, but for
rounding: sums over another batch size are rounded in another order, and the phases of the spectral autoencoder make a
little more of it. Shapes: B samples, C latent channels, T frames.
"""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_music.config.flow_sizes import num_tokens
from megatron_music.flow.guidance import Condition
from megatron_music.generation.flow_sampling import (
    FlowSampler,
    batch_size_within,
    between,
    sample_bytes,
    sample_embeddings,
    sample_latents,
)

EMBEDDINGS_AT_ONCE = 32  # of stage 1, which is bound by the start of its kernels up to there
_DECODED_FRAMES, _OVERLAP_FRAMES = 256, 32


class Sound(NamedTuple):
    """One sample."""

    prompt: str
    number: int  # of the prompt's samples, from 0
    samples: np.ndarray  # float32 [channels, frames]
    embedding: np.ndarray  # of music, that stage 2 was told, float32 [E]
    facts: dict[str, str | int | float]  # what it was made with, for its metadata


@dataclass(frozen=True)
class Given:
    """A sound to keep something of.

    Args:
        samples: float32 [channels, frames], at the autoencoder's sample rate.
        keeps: seconds (from, to) that stay as they are; the rest is made anew around them.
        start: where nothing is kept: how much noise is put over it, 1 all, near 0 hardly any.
    """

    samples: np.ndarray
    keeps: tuple[tuple[float, float], ...] = ()
    start: float = 1.0


@dataclass(frozen=True, eq=False)
class SoundMaker:
    """Both stages with what turns words into states and latents into sound.

    Args:
        text2muq: stage 1, or None: then ``music_encoder`` embeds the words.
        dit: stage 2.
        text_encoder, music_encoder, autoencoder: of the ``audio`` package; those the latents were made with.
        latent_length: frames that stage 2 was trained on.
        device: of the models.
        objectives: what stages 1 and 2 were trained by, ``flow`` or ``regression``.
        models: what is said of them in each sound's metadata.
    """

    text2muq: object | None
    dit: object
    text_encoder: object
    music_encoder: object | None
    autoencoder: object
    latent_length: int
    device: torch.device
    objectives: tuple[str, str] = ("flow", "flow")
    models: dict[str, str] = field(default_factory=dict)

    @property
    def seconds_per_frame(self) -> float:
        return self.autoencoder.downsampling / self.autoencoder.sample_rate

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Words of a prompt that the text encoder does not know.

        Raises:
            ValueError: it knows none of them, so that any sound at all would come out.
        """
        known, unknown = self.text_encoder.reads(prompt)
        if not known and self.text2muq is None and self.music_encoder is not None:
            known = self.music_encoder.reads(prompt).known  # which then embeds the prompt itself
        if not known:
            raise ValueError(
                f"no word of the prompt {prompt[:60]!r} is known to this model's text encoder "
                f"({self.text_encoder.name}); use words "
                "of the captions that it was trained on"
            )
        return unknown

    def words(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States [B, L, C] and which of them are words [B, L], on the models' device."""
        states, keeps = self.text_encoder.encode(list(prompts))
        return states.float().to(self.device), keeps.to(self.device)

    def embed(
        self, prompts: Sequence[str], seed: int, indices: Sequence[int], sampler: FlowSampler, negative: str = ""
    ) -> tuple[Tensor, Tensor]:
        """An embedding of music for each prompt, and the length it had before it was brought to 1; empty if none is
        heard.
        """
        if not self.dit.hears_music:
            return torch.zeros(len(prompts), 0, device=self.device), torch.zeros(len(prompts))
        if self.text2muq is None:
            found = torch.from_numpy(self.music_encoder.embed_text(list(prompts))).float().to(self.device)
            return found, found.norm(dim=1)
        null_BLC, null_keeps_BL = self.words([negative])
        parts = []
        for first in range(0, len(prompts), EMBEDDINGS_AT_ONCE):
            part = slice(first, first + EMBEDDINGS_AT_ONCE)
            states_BLC, keeps_BL = self.words(prompts[part])
            parts.append(
                sample_embeddings(
                    self.text2muq,
                    {"context_BLC": states_BLC, "keeps_BL": keeps_BL},
                    {"context_BLC": null_BLC, "keeps_BL": null_keeps_BL},
                    seed,
                    indices[part],
                    sampler,
                )
            )
        return torch.cat([part.embeddings_BE for part in parts]), torch.cat([part.lengths_B for part in parts])

    def make(
        self,
        prompts: Sequence[str],
        num: int,
        seed: int,
        *,
        seconds: float | None = None,
        stage1: FlowSampler = FlowSampler(),  # noqa: B008 (frozen)
        stage2: FlowSampler = FlowSampler(num_steps=100),  # noqa: B008
        negative: str = "",
        towards: str = "",
        share: float = 0.0,
        given: Given | None = None,
        batch_size: int | None = None,
        free_bytes: int = 1 << 30,
        missing: Container[int] | None = None,
    ) -> Iterator[Sound]:
        """Samples 0 to ``num - 1`` of each prompt, prompt after prompt.

        Args:
            seconds: how long; left out: as stage 2 was trained, or as the given sound.
            negative: what the sound should not be, in the place of no words at all.
            towards, share: an embedding this share of the way to that of another prompt.
            batch_size: of stage 2; left out: from an estimate of what fits into half of ``free_bytes``. It is among
                each sample's facts.
            missing: places of the samples to make, from 0; None: all. Batches are as if all were made, so that sample
                for sample the audio is the same.

        Raises:
            ValueError: no samples, no length or one beyond memory, a prompt of unknown words alone, or a given sound
                that does not fit.
        """
        if num < 1:
            raise ValueError(f"the number of samples is {num}; use 1 or more")
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError("a prompt is empty; describe the audio in words")
        if towards and not self.dit.hears_music:
            raise ValueError("this model takes no music embedding, so there is nothing to interpolate; omit towards")
        stage1, stage2 = stage1.as_trained(self.objectives[0]), stage2.as_trained(self.objectives[1])
        frames, given_CT, known_T = self._frames(seconds, given, stage2, free_bytes)
        for prompt in filter(None, (*prompts, negative.strip(), towards.strip())):
            self.text_encoder.encode([prompt])  # which refuses what is too long
            self.unknown_words(prompt)
        wanted = [(prompt, number) for prompt in prompts for number in range(num)]
        numbers = [number for _, number in wanted]
        texts = [prompt for prompt, _ in wanted]
        embeddings_BE, lengths_B = self.embed(texts, seed, numbers, stage1, negative)
        if towards:
            others_BE, _ = self.embed([towards] * len(wanted), seed, numbers, stage1, negative)
            ends = zip(embeddings_BE, others_BE, strict=True)
            embeddings_BE = torch.stack([between(first_E, last_E, share) for first_E, last_E in ends])
        if batch_size is None:
            guided = stage2.guidance_scale != 1
            width = self.dit.config.params_dtype.itemsize
            tokens = num_tokens(self.dit.size, self.text_encoder.length, hears_music=self.dit.hears_music)
            batch_size = batch_size_within(
                free_bytes, self.dit.size, frames, tokens, guided=guided, bytes_per_number=width
            )
        null = self._condition([negative], torch.zeros_like(embeddings_BE[:1]), frames)
        if not self.dit.hears_music and not negative:
            null["keeps_BL"] = torch.zeros_like(null["keeps_BL"])  # of the published model: no words at all
        settings = self.models | {
            "seed": seed,
            "seconds": self._num_samples(frames, seconds, given) / self.autoencoder.sample_rate,
            "negative": negative,
            "towards": towards,
            "share": share,
            "steps": stage2.num_steps,
            "solver": stage2.solver,
            "guidance_scale": stage2.guidance_scale,
            "shift": stage2.shift,
            "embedding_steps": stage1.num_steps,
            "embedding_solver": stage1.solver,
            "embedding_guidance_scale": stage1.guidance_scale,
            "batch_size": batch_size,
        }
        for first in range(0, len(wanted), batch_size):
            part = slice(first, first + batch_size)
            if missing is not None and not any(
                place in missing for place in range(first, min(first + batch_size, len(wanted)))
            ):
                continue
            condition = self._condition(texts[part], embeddings_BE[part], frames)
            latents_BCT = sample_latents(
                self.dit,
                condition,
                null,
                frames,
                seed,
                numbers[part],
                stage2,
                given=given_CT,
                known_T=known_T,
                start=given.start if given else 1.0,
            )
            for place, latents_CT in enumerate(latents_BCT, start=first):
                if missing is not None and place not in missing:
                    continue
                prompt, number = wanted[place]
                facts = {
                    "prompt": prompt,
                    "sample": number,
                    **settings,
                    "embedding_length": round(float(lengths_B[place]), 4),
                }
                embedding = embeddings_BE[place].cpu().numpy()
                yield Sound(
                    prompt,
                    number,
                    self._decoded(latents_CT, self._num_samples(frames, seconds, given)),
                    embedding,
                    facts,
                )

    def _num_samples(self, frames: int, seconds: float | None, given: Given | None) -> int:
        """Samples of audio in each channel: as many as were asked for or given, not rounded to latent frames."""
        if seconds is not None:
            return max(round(seconds * self.autoencoder.sample_rate), 1)
        return frames * self.autoencoder.downsampling if given is None else given.samples.shape[1]

    def _check_memory(self, seconds: float, stage2: FlowSampler, free_bytes: int) -> None:
        """Refuse a length of which not even one sample fits into memory."""
        guided, width = stage2.guidance_scale != 1, self.dit.config.params_dtype.itemsize

        def needed(frames: int) -> int:
            model = sample_bytes(self.dit.size, frames, 0, guided, width, scores=False)
            return max(model, self.autoencoder.decoding_bytes(frames, _DECODED_FRAMES))

        frames = math.ceil(seconds / self.seconds_per_frame)
        if needed(frames) <= free_bytes:
            return
        least, most = 1, frames
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if needed(middle) <= free_bytes else (least, middle)
        raise ValueError(
            f"{seconds:g} s of audio take about {needed(frames) / 2**30:,.0f} GiB and {free_bytes / 2**30:,.1f} GiB "
            f"are free; use "
            f"{least * self.seconds_per_frame:,.0f} s or less"
        )

    def _frames(
        self, seconds: float | None, given: Given | None, stage2: FlowSampler, free_bytes: int
    ) -> tuple[int, Tensor | None, Tensor | None]:
        """Latent frames to make, the given latents [C, T] filled up to them, and which of them are known [T]."""
        if seconds is not None and not 0 < seconds < float("inf"):
            raise ValueError(f"the length is {seconds} seconds; use more than 0")
        wanted = (
            given.samples.shape[1] / self.autoencoder.sample_rate if given is not None and seconds is None else seconds
        )
        if wanted is not None:
            self._check_memory(wanted, stage2, free_bytes)
        own = self.latent_length
        if given is not None:
            with torch.no_grad():
                latents_CT = self.autoencoder.encode(torch.from_numpy(given.samples)[None].to(self.device))[0].float()
            own = latents_CT.shape[1]
        frames = own if seconds is None else max(math.ceil(seconds / self.seconds_per_frame - 1e-6), 1)
        if given is None:
            return frames, None, None
        latents_CT = torch.nn.functional.pad(latents_CT[:, :frames], (0, max(frames - latents_CT.shape[1], 0)))
        if not given.keeps:
            return frames, latents_CT, None
        known_T = torch.zeros(frames, dtype=torch.bool)
        for begin, end in given.keeps:
            known_T[round(begin / self.seconds_per_frame) : min(round(end / self.seconds_per_frame), own)] = True
        if not known_T.any() or known_T.all():
            kept = "nothing" if not known_T.any() else "everything"
            raise ValueError(
                f"of the given sound {kept} is kept in {frames * self.seconds_per_frame:.1f} s; give other seconds"
            )
        return frames, latents_CT, known_T

    def _condition(self, prompts: Sequence[str], embeddings_BE: Tensor, frames: int) -> Condition:
        states_BLC, keeps_BL = self.words(prompts)
        count = len(prompts)
        music = {"music_BE": embeddings_BE} if self.dit.hears_music else {}
        return music | {
            "text_BLC": states_BLC,
            "keeps_BL": keeps_BL,
            "seconds_start_B": torch.zeros(count, device=self.device),
            "seconds_total_B": torch.full((count,), frames * self.seconds_per_frame, device=self.device),
        }

    def _decoded(self, latents_CT: Tensor, num_samples: int) -> np.ndarray:
        with torch.no_grad():
            samples = self.autoencoder.decode_in_chunks(latents_CT[None], _DECODED_FRAMES, _OVERLAP_FRAMES)[0]
        return samples[:, :num_samples].float().cpu().numpy()
