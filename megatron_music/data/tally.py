"""What the shards of a build hold, summed up: read from their records, which are small, before any token is.

Memory: about 70 bytes an input file, and the record of one shard.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from megatron_music.data.corpus import Entry
from megatron_music.data.splits import DROPPED, KEY_BYTES, assign_splits

TRAIN, TRAIN_COPIES = 0, 3  # 1 and 2, valid and test, have no augmented copies
DENSITY_BINS, ONSET_ERROR_BINS = 128, 10
NOTE_COUNTS = ("notes_in", "notes_out", "notes_lost", "notes_shortened", "notes_lengthened", "onsets_on_grid")


@dataclass
class Tally:
    """The files of a build, in canonical order.

    Args:
        documents: int64 [files, 2]: windows of copy 0, and of the other copies.
        tokens: the same in tokens.
        sources: int32 [files], the source each file came from.
        splits: int8 [files], set by ``assign``: 0 train, 1 valid, 2 test, DROPPED also for files without documents.
        kept_tokens: int64 [files]: of each file in the dataset, set as it is written.
    """

    documents: np.ndarray
    tokens: np.ndarray
    sources: np.ndarray
    contents: np.ndarray
    digests: np.ndarray
    splits: np.ndarray
    kept_tokens: np.ndarray
    left_out: Counter = field(default_factory=Counter)
    windows_left_out: Counter = field(default_factory=Counter)
    notes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NOTE_COUNTS, 0))
    onset_error_sum: float = 0.0
    max_onset_error: float = 0.0
    quarantined: int = 0
    rescued: int = 0
    a_damage: str = ""
    density: np.ndarray = field(default_factory=lambda: np.zeros(DENSITY_BINS, np.int64))
    onset_error: np.ndarray = field(default_factory=lambda: np.zeros(ONSET_ERROR_BINS, np.int64))
    copies: int = 0
    near_copies: int = 0

    @staticmethod
    def of(files: int) -> "Tally":
        """Room for so many files."""
        counts = lambda: np.zeros((files, 2), np.int64)  # noqa: E731
        keys = lambda: np.zeros((files, KEY_BYTES), np.uint8)  # noqa: E731
        splits, kept_tokens = np.full(files, DROPPED, np.int8), np.zeros(files, np.int64)
        return Tally(counts(), counts(), np.zeros(files, np.int32), keys(), keys(), splits, kept_tokens)

    def add(self, number: int, record: dict, entry: Entry, quarantine: TextIO) -> None:
        """Take in the record of one file; a damaged one is written to the quarantine list."""
        self.sources[number] = entry.source
        if record["damage"]:
            path = f"{entry.path}!{entry.member}" if entry.member else entry.path
            quarantine.write(json.dumps({"path": path, "reason": record["damage"]}) + "\n")
            self.quarantined += 1
            self.a_damage = self.a_damage or record["damage"]
        elif record["left_out"]:
            self.left_out[record["left_out"]] += 1
        else:
            for counts, name in ((self.documents, "documents"), (self.tokens, "tokens")):
                counts[number] = record[name][0], sum(record[name][1:])
            self.contents[number] = _key(record["content"] or record["digest"])
            self.digests[number] = _key(record["digest"])
        self.rescued += record["rescued"]
        for reason, windows in record["windows_left_out"].items():
            self.windows_left_out[reason] += windows
        notes = record["notes"]
        if notes:
            for name in NOTE_COUNTS:
                self.notes[name] += notes.get(name, 0)
            self.onset_error_sum += notes.get("onset_error_sum", 0.0)
            self.max_onset_error = max(self.max_onset_error, notes.get("max_onset_error", 0.0))

    def assign(self, seed: int, fractions: tuple[float, float, float], drop_duplicates: bool) -> None:
        """Send every file that gave documents to a split, or drop it."""
        given = np.flatnonzero(self.documents[:, 0])
        assignment = assign_splits(self.contents[given], self.digests[given], seed, fractions, drop_duplicates)
        self.splits[given] = assignment.splits
        self.copies, self.near_copies = assignment.copies, assignment.near_copies

    def kept_documents(self, files: slice = slice(None)) -> np.ndarray:  # noqa: B008 (immutable)
        """int64 [files]: documents in the dataset; augmented ones only train."""
        splits, (first, others) = self.splits[files], self.documents[files].T
        return np.where(splits == DROPPED, 0, first) + np.where(splits == TRAIN, others, 0)

    def runs(self, files: slice) -> tuple[np.ndarray, np.ndarray]:
        """The runs of documents in the shard of some files: which group each is of, and its documents.

        The groups are the splits, and TRAIN_COPIES for the augmented copies of training files.
        """
        splits = self.splits[files]
        groups = np.stack([splits, np.where(splits == TRAIN, TRAIN_COPIES, DROPPED)], axis=1)
        return groups.ravel(), self.documents[files].ravel()

    def add_lengths(self, files: slice, split: int, lengths: np.ndarray) -> None:
        """Note the tokens of the documents that some files gave to a split."""
        documents = np.where(self.splits[files] == split, self.kept_documents(files), 0)
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.kept_tokens[files] += np.diff(ends[np.concatenate([[0], np.cumsum(documents)])])


def _key(digest: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digest)[:KEY_BYTES], np.uint8)
