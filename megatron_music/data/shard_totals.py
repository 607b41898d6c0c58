"""What the shards of a build hold, summed up: read from their records, which are small, before any token is.

Memory: about 70 bytes an input file, and the record of one shard.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from megatron_music.corpora.archives import Entry
from megatron_music.data.grouping import split_named
from megatron_music.data.splits import DROPPED, KEY_BYTES, assign_splits
from megatron_music.data.token_counts import add_json
from megatron_music.reports.reasons import CHANCE_NOTES, is_chance, is_no_meter
from megatron_music.tokens.density import NUM_IDS

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
        first: int64 [files], set by ``assign``: the first file with the same notes, DROPPED for files without
            documents.
        group_of: int32 [files], the number of each file's value of ``--split-by``, -1 for none.
        groups: the numbers of these values.
        meters: files by the meter in force longest; ``meters_left_out`` those without a part in the wanted meters,
            ``meters_undeclared`` those whose meter was read as if it had not been declared.
        changing: files with more than one meter.
        chance_files, judged_files: files whose onsets lie as chance would put them, of those with enough notes to tell.
        id_counts: int64 [NUM_IDS], how often each id occurs in the shards.
    """

    documents: np.ndarray
    tokens: np.ndarray
    sources: np.ndarray
    contents: np.ndarray
    digests: np.ndarray
    splits: np.ndarray
    kept_tokens: np.ndarray
    first: np.ndarray
    group_of: np.ndarray
    groups: dict[str, int] = field(default_factory=dict)
    meters: Counter = field(default_factory=Counter)
    meters_left_out: Counter = field(default_factory=Counter)
    meters_undeclared: Counter = field(default_factory=Counter)
    changing: int = 0
    chance_files: int = 0
    judged_files: int = 0
    split_by: dict | None = None
    left_out: Counter = field(default_factory=Counter)
    windows_left_out: Counter = field(default_factory=Counter)
    unheld: Counter = field(default_factory=Counter)  # events that files hold and documents do not, by kind
    unheld_files: Counter = field(default_factory=Counter)  # and in how many files they are
    notes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NOTE_COUNTS, 0))
    onset_error_sum: float = 0.0
    max_onset_error: float = 0.0
    quarantined: int = 0
    rescued: int = 0
    a_damage: str = ""
    density: np.ndarray = field(default_factory=lambda: np.zeros(DENSITY_BINS, np.int64))
    onset_error: np.ndarray = field(default_factory=lambda: np.zeros(ONSET_ERROR_BINS, np.int64))
    id_counts: np.ndarray = field(default_factory=lambda: np.zeros(NUM_IDS, np.int64))
    copies: int = 0
    near_copies: int = 0

    @staticmethod
    def of(files: int) -> "Tally":
        """Room for so many files."""
        counts = lambda: np.zeros((files, 2), np.int64)
        keys = lambda: np.zeros((files, KEY_BYTES), np.uint8)
        splits, kept_tokens = np.full(files, DROPPED, np.int8), np.zeros(files, np.int64)
        first, group_of = np.full(files, DROPPED, np.int64), np.full(files, DROPPED, np.int32)
        return Tally(
            counts(), counts(), np.zeros(files, np.int32), keys(), keys(), splits, kept_tokens, first, group_of
        )

    def add(self, files: slice, record: dict, entries: Sequence[Entry] | None, quarantine: TextIO) -> None:
        """Take in the record of a shard; its damaged files are written to the quarantine list.

        Args:
            files: which files it is of.
            entries: those files; None if none is damaged, all are of source 0 and none has a group.
        """
        if entries is not None:
            self.sources[files] = [entry.source for entry in entries]
            self.group_of[files] = [
                self.groups.setdefault(entry.group, len(self.groups)) if entry.group else DROPPED for entry in entries
            ]
        given, rows = [], []  # files that gave documents, and what is known of each
        for place, file in enumerate(record["files"]):
            if "damage" in file:
                self._quarantine(entries[place], file["damage"], quarantine)
            elif "left_out" in file:
                self.left_out[file["left_out"]] += 1
            elif "documents" in file:
                given.append(files.start + place)
                rows.append(file)
            if "rescued" in file:
                self.rescued += 1
            if "unheld" in file:
                self.unheld.update(file["unheld"])
                self.unheld_files.update(file["unheld"].keys())
            if "meter" in file:
                self._add_meter(file)
            if "windows_left_out" in file:
                self.windows_left_out.update(file["windows_left_out"])
        if rows:
            for counts, name in ((self.documents, "documents"), (self.tokens, "tokens")):
                counts[given] = [(row[name][0], sum(row[name][1:])) for row in rows]
            self.contents[given] = _keys([row.get("content") or row["digest"] for row in rows])
            self.digests[given] = _keys([row["digest"] for row in rows])
        self._add_notes(record["notes"])
        self.density += record["density"]
        self.onset_error += record["onset_error"]
        add_json(self.id_counts, record["ids"])

    def _add_meter(self, file: dict) -> None:
        meter = file["meter"]
        self.meters[meter] += 1
        self.changing += "meter_changes" in file
        if "meter_undeclared" in file:
            self.meters_undeclared[meter] += 1
        if is_no_meter(file.get("left_out", "")):
            self.meters_left_out[meter] += 1

    def _quarantine(self, entry: Entry, damage: str, quarantine: TextIO) -> None:
        path = f"{entry.path}!{entry.member}" if entry.member else entry.path
        quarantine.write(json.dumps({"path": path, "reason": damage}) + "\n")
        self.quarantined += 1
        self.a_damage = self.a_damage or damage

    def _add_notes(self, notes: dict[str, list]) -> None:
        for name in NOTE_COUNTS:
            self.notes[name] += sum(notes[name])
        for one in notes[
            "onset_error_sum"
        ]:  # one by one: a sum of fractions taken shard by shard would depend on the shards
            self.onset_error_sum += one
        self.max_onset_error = max(self.max_onset_error, *notes["max_onset_error"], 0)
        for count, exact, error in zip(
            notes["notes_in"], notes["onsets_on_grid"], notes["onset_error_sum"], strict=True
        ):
            if count >= CHANCE_NOTES:
                self.judged_files += 1
                self.chance_files += is_chance(error / count, exact / count)

    def assign(self, seed: int, fractions: tuple[float, float, float], drop_duplicates: bool) -> None:
        """Send every file that gave documents to a split, or drop it."""
        given = np.flatnonzero(self.documents[:, 0])
        groups, own_splits = self._groups_or_splits(given)
        assignment = assign_splits(
            self.contents[given], self.digests[given], seed, fractions, drop_duplicates, groups, own_splits
        )
        self.splits[given] = assignment.splits
        self.first[given] = given[assignment.first]
        self.copies, self.near_copies = assignment.copies, assignment.near_copies
        if self.groups:
            found = self.group_of[given]
            self.split_by = {
                "given": own_splits is not None,
                "groups": len(np.unique(found[found >= 0])),
                "files_without": int((found < 0).sum()),
                "joined": assignment.joined,
                "contradictions": assignment.contradictions,
            }

    def _groups_or_splits(self, files: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The groups of some files, or the splits where every group is the name of one."""
        if not self.groups:
            return None, None
        named = [split_named(group) for group in self.groups]
        if None in named:
            return self.group_of[files], None
        return None, np.array([*named, DROPPED], np.int8)[self.group_of[files]]

    def kept_documents(self, files: slice = slice(None)) -> np.ndarray:
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


def _keys(digests: list[str]) -> np.ndarray:
    """The first bytes of hashes in hexadecimal (uint8, [hashes, KEY_BYTES])."""
    text = "".join(digest[: 2 * KEY_BYTES] for digest in digests)
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, KEY_BYTES)
