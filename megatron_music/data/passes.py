"""The passes of a merge over its shards, in their order: count ids, learn merges from, copy documents to their splits."""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import numpy as np

from megatron_music.data.shard_reader import PIECE_TOKENS, ShardReader
from megatron_music.data.split_writer import SplitWriter
from megatron_music.data.splits import DROPPED
from megatron_music.data.tally import TRAIN, TRAIN_COPIES, Tally
from megatron_music.tokens import vocabulary
from megatron_music.tokens.bpe import Bpe
from megatron_music.tokens.density import NUM_IDS
from megatron_music.tokens.folder import Encoding

Progress = Callable[[Iterable, int], Iterable]
FIRST_LABEL = vocabulary.IDS["GENRE=0"]  # labels are the last blocks before DOCUMENT_END


class IdCounter:
    """Counts ids, some tens of thousands at a time: a table of all ids for each short run would cost more than the run."""

    def __init__(self):
        self._counts = np.zeros(NUM_IDS, np.int64)
        self._waiting: list[np.ndarray] = []
        self._tokens = 0

    def add(self, ids: np.ndarray) -> None:
        self._waiting.append(ids)
        self._tokens += len(ids)
        if self._tokens >= PIECE_TOKENS:
            self._count()

    def _count(self) -> None:
        if self._waiting:
            ids = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
            self._counts += np.bincount(ids, minlength=NUM_IDS)
        self._waiting, self._tokens = [], 0

    def counts(self) -> np.ndarray:
        """How often each id has come (int64, [NUM_IDS])."""
        self._count()
        return self._counts


def _each(readers: list[ShardReader], progress: Progress) -> Iterator[ShardReader]:
    """The shards; progress counts input files."""

    def steps():
        for reader in readers:
            yield reader
            yield from repeat(None, reader.files.stop - reader.files.start - 1)

    return (reader for reader in progress(steps(), readers[-1].files.stop) if reader is not None)


def count_ids(readers: list[ShardReader], tally: Tally, progress: Progress) -> np.ndarray:
    """Check every byte of the shards, and count the ids of each group (int64, [4, NUM_IDS]).

    Raises:
        DamagedShard: bytes are not those that were written.
    """
    counters = [IdCounter() for _ in range(TRAIN_COPIES + 1)]
    for reader in _each(readers, progress):
        for group, ids, _ in reader.pieces(*tally.runs(reader.files), check=True):
            counters[group].add(ids)
    return np.stack([counter.counts() for counter in counters])


def count_labelled(readers: list[ShardReader], tally: Tally) -> int:
    """How many files of the dataset have a label: it stands after PIECE_START in each of their documents."""
    labelled = 0
    for reader in readers:
        tokens = tally.tokens[reader.files].sum(axis=1)
        starts = (np.cumsum(tokens) - tokens)[tally.splits[reader.files] != DROPPED]
        ids = reader.ids_at(starts + 1)
        labelled += int(np.count_nonzero((ids >= FIRST_LABEL) & (ids < vocabulary.DOCUMENT_END)))
    return labelled


def train_documents(readers: list[ShardReader], tally: Tally, table: np.ndarray) -> Iterator[np.ndarray]:
    """The documents of train, closed by ``table``, many at a time."""
    for reader in readers:
        groups, documents = tally.runs(reader.files)
        groups = np.where(groups % TRAIN_COPIES == TRAIN, TRAIN, DROPPED)
        for _, ids, _ in reader.pieces(groups, documents):
            yield table[ids]


def text_of_ids(encoding: Encoding) -> np.ndarray:
    """The text of each id, filled up with zero bytes: ``words[ids]`` without them is one document a line.

    Tokens are parted by one space; DOCUMENT_END is the end of the line.
    """
    words = [f" {token}".encode() for token in encoding.tokens]
    words[vocabulary.PIECE_START] = b"PIECE_START"
    words[vocabulary.DOCUMENT_END] = b"\n"
    return np.array(words)


def copy_documents(
    readers: list[ShardReader],
    tally: Tally,
    writers: list[SplitWriter],
    table: np.ndarray | None,
    words: np.ndarray,
    bpe: Bpe | None,
    progress: Progress,
) -> np.ndarray:
    """Write every document to its split.

    Args:
        table: closes open ids; None where there are none, and bytes are copied as they are.
        words: the text of each id before merging, from ``text_of_ids``.
        bpe: merges tokens, or None.

    Returns:
        How often each merged id occurs in train (int64, [NUM_IDS]); zeros without ``bpe``.
    """
    counter = IdCounter()
    for reader in _each(readers, progress):
        groups, documents = tally.runs(reader.files)
        lengths_of: list[list[np.ndarray]] = [[np.empty(0, np.int32)] for _ in writers]
        for split, ids, lengths in reader.pieces(np.where(groups == TRAIN_COPIES, TRAIN, groups), documents):
            writer = writers[split]
            if table is not None:
                ids = table[ids]
            if writer.wants_text:
                writer.add_text(words[ids].tobytes().translate(None, b"\0"))
            if bpe is not None:
                ids, lengths = bpe.encode(ids, lengths)
                if split == TRAIN:
                    counter.add(ids)
            writer.add(ids, lengths)
            lengths_of[split].append(lengths)
        for split, lengths in enumerate(lengths_of):
            tally.add_lengths(reader.files, split, np.concatenate(lengths))
    return counter.counts()
