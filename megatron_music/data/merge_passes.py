"""The passes of a merge over its shards, in their order: count ids, learn merges from, copy documents to their
splits.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import numpy as np

from megatron_music.data.shard_reader import ShardReader, checked
from megatron_music.data.shard_totals import TRAIN, TRAIN_COPIES, Tally
from megatron_music.data.split_writer import SplitWriter
from megatron_music.data.splits import DROPPED
from megatron_music.data.token_counts import IdCounter
from megatron_music.tokens import vocabulary
from megatron_music.tokens.bpe import Bpe
from megatron_music.tokens.encoding import Encoding

Progress = Callable[[Iterable, int], Iterable]
UNUSED = TRAIN_COPIES + 1  # a group for counting: what no split takes
FIRST_LABEL = vocabulary.IDS["GENRE=0"]  # labels are the last blocks before DOCUMENT_END


def _each(readers: Iterable[ShardReader], files: int, progress: Progress) -> Iterator[ShardReader]:
    """The shards; progress counts input files."""

    def steps():
        for reader in readers:
            yield reader
            yield from repeat(None, reader.files.stop - reader.files.start - 1)

    return (reader for reader in progress(steps(), files) if reader is not None)


def count_ids(readers: list[ShardReader], tally: Tally, copies_apart: bool, progress: Progress) -> np.ndarray:
    """Count the ids of each group (int64, [4, NUM_IDS]).

    The shards' records count those of all documents. Only what is not train is read: train has what is left.

    Args:
        copies_apart: whether TRAIN_COPIES are a group of their own; else they are counted with train.
    """
    counters = [IdCounter() for _ in range(UNUSED + 1)]
    for reader in _each(readers, len(tally.splits), progress):
        groups, documents = tally.runs(reader.files)
        if not copies_apart:
            groups = np.where(groups == TRAIN_COPIES, TRAIN, groups)
        groups = np.select([groups == TRAIN, groups == DROPPED], [DROPPED, UNUSED], groups)
        for group, ids, _ in reader.pieces(groups, documents):
            counters[group].add(ids)
    counts = np.stack([counter.counts() for counter in counters])
    counts[TRAIN] = tally.id_counts - counts.sum(axis=0)
    return counts[:UNUSED]


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
    for reader in checked(readers):
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
    """Check every byte of the shards, and write every document to its split.

    Args:
        table: closes open ids; None where there are none, and bytes are copied as they are.
        words: the text of each id before merging, from ``text_of_ids``.
        bpe: merges tokens, or None.

    Returns:
        How often each merged id occurs in train (int64, [NUM_IDS]); zeros without ``bpe``.

    Raises:
        DamagedShard: bytes are not those that were written.
    """
    counter = IdCounter()
    for reader in _each(checked(readers), len(tally.splits), progress):
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
            writer.add(ids)
            lengths_of[split].append(lengths)
        for split, lengths in enumerate(map(np.concatenate, lengths_of)):
            writers[split].add_lengths(lengths)
            tally.add_lengths(reader.files, split, lengths)
    return counter.counts()
