"""An n-gram model of token ids: what a model must beat that knows the last few ids alone.

Trained on arrays of documents; it is given no files, and a model of megatron-core can stand in its place under the same
sampler.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_music.tokens import vocabulary as v

# A context of 5 ids and the id after it fit into an int64: 768^6 < 2^63.
MAX_ORDER = 5


class Markov:
    """Probabilities of the next id after the last ``order`` ids, backing off to fewer.

    Each order is mixed with the one below it in Witten and Bell's proportion: a context that was seen n times with t
    different ids after it has the weight n / (n + t), what was counted below it the rest; below all, every id is
    equally likely, so that none is impossible. Witten and Bell 1991, as interpolated by Chen and Goodman 1998.

    Args:
        documents: ids of each; contexts do not reach over a document's start.
        order: ids looked back on, 0 to 5; 0 knows frequencies alone.

    Raises:
        ValueError: another order, ids outside the vocabulary (merged tokens), or no ids at all.
    """

    def __init__(self, documents: Iterable[Sequence[int]], order: int):
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"order is {order}; use 0 to {MAX_ORDER}: more ids do not fit into a key of 64 bits")
        self.order = order
        arrays = [np.asarray(document, np.int64) for document in documents]
        ids = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
        if not len(ids) or ids.min() < 0 or ids.max() >= v.SIZE:
            raise ValueError(
                f"the documents have no ids, or ids outside 0..{v.SIZE - 1}; give documents without merged tokens"
            )
        places = np.concatenate([np.arange(len(array)) for array in arrays])  # of each id in its document
        self._keys: list[np.ndarray] = []  # of each order: context and next id in one number, rising
        self._counts: list[np.ndarray] = []
        key = np.zeros(len(ids), np.int64)  # the context of n ids before each id, where there are as many
        for length in range(order + 1):
            if length:
                # The id n places back goes in front of the n - 1 nearer ones.
                key[length:] += ids[:-length] * v.SIZE ** (length - 1)
            known = places >= length
            keys, counts = np.unique(key[known] * v.SIZE + ids[known], return_counts=True)
            self._keys.append(keys)
            self._counts.append(counts)

    def probabilities(self, context: Sequence[int]) -> np.ndarray:
        """The probability of every id after ``context`` (float64, [vocabulary size]); only its last ids count."""
        mixed = np.full(v.SIZE, 1 / v.SIZE)
        key = 0
        for length in range(min(self.order, len(context)) + 1):
            if length:
                key += int(context[-length]) * v.SIZE ** (length - 1)
            keys, counts = self._keys[length], self._counts[length]
            first, after = np.searchsorted(keys, (key * v.SIZE, (key + 1) * v.SIZE))
            if first == after:
                break  # what was never seen was never seen after more ids either
            seen, found = counts[first:after], keys[first:after] - key * v.SIZE
            mixed *= len(seen) / (seen.sum() + len(seen))
            mixed[found] += seen / (seen.sum() + len(seen))
        return mixed

    def loss(self, documents: Iterable[Sequence[int]]) -> tuple[float, int]:
        """The summed loss in nats of all ids but each document's first, and their number."""
        total, count = 0.0, 0
        for document in documents:
            ids = np.asarray(document, np.int64)
            for place in range(1, len(ids)):
                context = ids[max(place - self.order, 0) : place]
                total -= float(np.log(self.probabilities(context)[ids[place]]))
            count += max(len(ids) - 1, 0)
        return total, count


class MarkovLogits:
    """A ``Markov`` as ``NextLogits``, in the place of ``CachedGPT``: give it to ``Composer`` as ``next_logits``."""

    def __init__(self, model: Markov, batch_size: int, max_tokens: int):
        self._model = model
        self._rows: list[list[int]] = [[] for _ in range(batch_size)]

    def __call__(self, ids_BS: Tensor) -> Tensor:
        for row, new in zip(self._rows, ids_BS.tolist(), strict=True):
            row += new
        probabilities_BV = np.stack([self._model.probabilities(row[-MAX_ORDER:]) for row in self._rows])
        return torch.from_numpy(np.log(probabilities_BV)).float().to(ids_BS.device)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        self._rows = [self._rows[row] for row in rows]
