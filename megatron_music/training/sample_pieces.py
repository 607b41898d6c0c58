"""Pieces that the model writes at an evaluation: MIDI files, a picture, and measures of them beside validation music.

They change nothing in the training: generators of their own, and the model left as it was found.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import nn

from megatron_music.config.log import logger
from megatron_music.config.run import RunConfig
from megatron_music.data.folders import check_folders
from megatron_music.data.indexed import open_split
from megatron_music.generation.midi import Composer
from megatron_music.generation.sampling import CachedGPT
from megatron_music.generation.unconstrained import grammatical_share, write_unruled
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Score
from megatron_music.music.statistics import measure
from megatron_music.parallel import distributed
from megatron_music.tokens.mmmtrack import decode_piece
from megatron_music.training.metrics import Metrics

FOLDER = "samples"
# As many documents of the validation split, evenly spread, are what pieces are compared with.
REFERENCE_DOCUMENTS = 256
# What sequence parallelism splits is the sequence, of which there is one token at a time here.
_SEQUENCE_PARALLEL = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")


class Samples:
    """What ``logging.sample_pieces`` asks for; without it, and where it cannot be, ``take`` does nothing.

    Piece k is made from seed k, from nothing, in one window of the model: always the same seeds, so that pictures of a
    run show one piece as it grows. Every process must make one, and call ``take`` together.

    Args:
        folder: the run's folder, or None to write no files.
    """

    def __init__(self, config: RunConfig, folder: Path | None):
        self._config, self._folder = config, folder
        self._count = config.logging.sample_pieces
        self._reference: list[Score] = []
        if not self._count:
            return
        self._encoding = check_folders(config.data).encoding
        reason = self._reason_against()
        if reason:
            self._count = 0
            if distributed.is_main():
                logger.warning(f"NO SAMPLE PIECES: {reason}")
        elif distributed.is_main():
            if config.logging.tensorboard and folder:
                import megatron_music.reports.pianoroll  # noqa: F401 (if matplotlib is missing, now and not in an hour)
            self._reference = _reference(config, self._encoding.steps_per_quarter)

    def take(self, module: nn.Module, iteration: int, valid_loss: float, metrics: Metrics) -> dict[str, float | None]:
        """Write the pieces and measure them.

        Args:
            module: the bare GPTModel.
            valid_loss: nats a token.

        Returns:
            On the main process ``valid_perplexity``, ``grammatical_share`` of as many pieces sampled without the
            grammar, and what ``measure`` says of the pieces under it; elsewhere, and where there are no pieces,
            nothing.
        """
        # One group of tensor-parallel processes writes; the others would write the same.
        if not self._count or parallel_state.get_data_parallel_rank() != 0:
            return {}
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        seeds, max_tokens = range(self._count), self._config.model.seq_length
        with _as_for_inference(module):
            pieces = Composer(module, self._encoding, max_tokens, device=device).compose(seeds)
            unruled = write_unruled(seeds, CachedGPT(module, self._count, max_tokens), max_tokens, device=device)
        if not distributed.is_main():
            return {}
        self._write(pieces, iteration, metrics)
        return {
            "valid_perplexity": math.exp(valid_loss) if valid_loss < 700 else None,  # e^710 is no float
            "grammatical_share": grammatical_share(unruled, self._encoding),
            **measure(pieces, self._reference),
        }

    def _reason_against(self) -> str:
        if self._config.parallel.pipeline_model_parallel_size > 1:
            return "the model is on several pipeline stages; `generate midi` writes pieces from a checkpoint"
        if self._config.parallel.context_parallel_size > 1:
            return (
                "the sequences are on several context-parallel processes; `generate midi` writes pieces from a "
                "checkpoint"
            )
        if self._encoding.bars < 1 or self._encoding.bpe:
            return "the data has whole pieces or merged tokens, and the grammar knows windows (--bars 4) without --bpe"
        return ""

    def _write(self, pieces: list[Score], iteration: int, metrics: Metrics) -> None:
        heard = {number: score for number, score in enumerate(pieces, start=1) if score.num_notes}
        if not self._folder or not heard:
            return
        folder = self._folder / FOLDER / f"iter_{iteration:07d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number, score in heard.items():
                write_midi(score, folder / f"{number:03}.mid")
        except OSError as error:  # a full disk is no reason to lose a training
            logger.warning(f"the pieces of iteration {iteration} are not written ({error})")
        if self._config.logging.tensorboard:
            from megatron_music.reports.pianoroll import score_pixels

            number, score = next(iter(heard.items()))
            metrics.write_picture(iteration, "sample", score_pixels(score, f"iteration {iteration}, piece {number}"))


@contextlib.contextmanager
def _as_for_inference(module: nn.Module) -> Iterator[None]:
    """The model in eval mode without sequence parallelism, and afterwards all as it was, random generators included."""
    was_training = {part: part.training for part in module.modules()}
    was_split = [
        (part, name, getattr(part, name))
        for part in (module.config, *module.modules())
        for name in _SEQUENCE_PARALLEL
        if isinstance(getattr(part, name, None), bool)
    ]
    states = torch.get_rng_state(), torch.cuda.get_rng_state(), get_cuda_rng_tracker().get_states()
    module.eval()
    for part, name, _ in was_split:
        setattr(part, name, False)
    try:
        yield
    finally:
        for part, name, value in was_split:
            setattr(part, name, value)
        for part, mode in was_training.items():
            part.training = mode
        torch.set_rng_state(states[0])
        torch.cuda.set_rng_state(states[1])
        get_cuda_rng_tracker().set_states(states[2])


def _reference(config: RunConfig, steps_per_quarter: int) -> list[Score]:
    """Music of the validation splits of all folders, the same at every evaluation."""
    scores = []
    for folder in config.data.folders:
        documents = open_split(folder, "valid")
        wanted = min(len(documents), max(REFERENCE_DOCUMENTS // len(config.data.folders), 1))
        places = np.unique(np.linspace(0, len(documents) - 1, wanted).astype(int))
        scores += [decode_piece(documents[int(place)], steps_per_quarter) for place in places]
    return scores
