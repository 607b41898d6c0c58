"""Merged tokens above the vocabulary's own: byte-pair encoding of the events within a bar.

A word is a run of TIME_DELTA, VELOCITY, NOTE_ON and NOTE_OFF within one bar or fill; merges never leave it, and every
other id stays as it is. A merged token stands for the ids it was merged from, so decoding is exact. Only learning needs
the package ``tokenizers``.

Shapes: N ids, D documents.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron_music.storage.reading import read_json_object
from megatron_music.tokens import vocabulary as v

BPE_FILE = "bpe.json"
MAX_MERGES = 1 << 15  # ids are uint16
MAX_SPELLED, MAX_TOTAL = 1 << 14, 1 << 24  # events that a merged token stands for, and all together
STEP = 128  # 768 and a multiple of it divide among tensor-parallel ranks

_IS_EVENT = np.zeros(1 << 16, bool)
_IS_EVENT[v.TIME_DELTA + 1 : v.NOTE_OFF + 128] = True  # TIME_DELTA, NOTE_ON and NOTE_OFF lie side by side
_IS_EVENT[v.VELOCITY : v.VELOCITY + v.NUM_VELOCITIES] = True
_CACHED_WORDS = 1 << 18
_NEVER = 1 << 30  # the rank of a pair that is not merged

# For learning an event is one character of Unicode's private use area, and all else ends a word.
_FIRST_CHARACTER = 0xE000
_CHARACTERS = np.where(_IS_EVENT, np.arange(1 << 16) + _FIRST_CHARACTER, ord(" ")).astype("<u4")


class Bpe:
    """Merges in the order in which they were learnt.

    Args:
        merges: pairs of ids. The first pair's result is id 768, and so on; a pair that spells what an earlier one
            spells has that one's id.

    Attributes:
        size: how many merged tokens there are; their ids are 768 to 767 + size.
        spelled: the base ids of each.

    Raises:
        ValueError: a pair has an id that is no event and no earlier result.
    """

    def __init__(self, merges: Iterable[Sequence[int]]):
        self.merges = tuple((int(left), int(right)) for left, right in merges)
        ids: dict[tuple[int, ...], int] = {}
        spelled: list[tuple[int, ...]] = []
        self._ranks: dict[int, int] = {}  # of a pair, as one number
        self._results: list[int] = []  # by rank
        total = 0
        for rank, pair in enumerate(self.merges):
            if not all(
                (0 <= part < v.SIZE and _IS_EVENT[part]) or v.SIZE <= part < v.SIZE + len(spelled) for part in pair
            ):
                raise ValueError(f"merge {rank + 1} is of {pair}, which are not events or earlier results")
            lengths = [len(spelled[part - v.SIZE]) if part >= v.SIZE else 1 for part in pair]
            total += sum(lengths)
            if sum(lengths) > MAX_SPELLED or total > MAX_TOTAL:
                raise ValueError(f"merge {rank + 1} stands for {sum(lengths):,} events, more than any bar of music has")
            base = sum((spelled[part - v.SIZE] if part >= v.SIZE else (part,) for part in pair), ())
            if base not in ids:
                ids[base] = v.SIZE + len(spelled)
                spelled.append(base)
            self._ranks.setdefault(pair[0] << 16 | pair[1], rank)
            self._results.append(ids[base])
        self.spelled = tuple(spelled)
        self.size = len(spelled)
        if self.size > MAX_MERGES:
            raise ValueError(f"{self.size} merged tokens are more than {MAX_MERGES:,}; ids are uint16")
        self._lengths = np.array([1] * v.SIZE + [len(base) for base in spelled], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._base_ids = np.array([*range(v.SIZE), *(part for base in spelled for part in base)], np.uint16)
        self._words: dict[bytes, bytes] = {}

    def __eq__(self, other) -> bool:
        return isinstance(other, Bpe) and self.merges == other.merges

    def __hash__(self) -> int:
        return hash(self.merges)

    @property
    def words(self) -> tuple[str, ...]:
        """The merged tokens as text: ``NOTE_ON=60+TIME_DELTA=4``."""
        return tuple("+".join(v.TOKENS[part] for part in base) for base in self.spelled)

    def encode(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Documents with their events merged.

        Args:
            ids: documents of base ids one after another (uint16, [N]).
            lengths: ids in each, none of them 0 [D].

        Returns:
            The ids (uint16) and the lengths (int32, [D]) after merging.
        """
        ids = np.ascontiguousarray(ids, np.uint16)
        if not len(ids):
            return ids.copy(), np.zeros(len(lengths), np.int32)
        assert ids.max() < v.SIZE, "merged already, or densities still open"
        is_event = _IS_EVENT[ids]
        documents = np.cumsum(lengths) - lengths
        is_start = np.empty(len(ids), bool)
        is_start[0] = True
        np.not_equal(is_event[1:], is_event[:-1], out=is_start[1:])
        is_start[documents] = True

        # Runs of events (words) and runs of all else, in turn but at the starts of documents.
        starts = np.flatnonzero(is_start)
        is_word = is_event[starts]
        length = np.diff(starts, append=len(ids))
        words = self._merged(ids, starts[is_word], length[is_word])
        length[is_word] = np.fromiter(map(len, words), np.int64, len(words)) // 2
        is_merged = np.repeat(is_word, length)
        merged = np.empty(len(is_merged), np.uint16)
        merged[~is_merged] = ids[~is_event]
        merged[is_merged] = np.frombuffer(b"".join(words), np.uint16)
        return merged, np.add.reduceat(length, np.searchsorted(starts, documents)).astype(np.int32)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The base ids (uint16) that ids spell: exactly what was encoded."""
        ids = np.asarray(ids)
        length = self._lengths[ids]
        steps = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        return self._base_ids[np.repeat(self._starts[ids], length) + steps]

    def write(self, folder: str | os.PathLike) -> None:
        """Write ``bpe.json``: for each merged token its base ids, and the merges in order."""
        tokens = {str(v.SIZE + place): base for place, base in enumerate(self.spelled)}
        content = json.dumps({"tokens": tokens, "merges": self.merges}, separators=(",", ":"))
        Path(folder, BPE_FILE).write_text(content + "\n", encoding="utf-8")

    def _merged(self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> list[bytes]:
        """The merged ids of each word, as bytes; a word that was seen before is looked up."""
        data = ids.tobytes()
        ends = (2 * (starts + lengths)).tolist()
        words = [data[start:end] for start, end in zip((2 * starts).tolist(), ends, strict=True)]
        found = list(map(self._words.get, words))
        if None in found:
            new = {word for word, merged in zip(words, found, strict=True) if merged is None}
            if len(self._words) + len(new) > _CACHED_WORDS:
                self._words = {}
            fresh = {word: self._merge_word(word) for word in new}
            found = [merged or fresh[word] for word, merged in zip(words, found, strict=True)]
            self._words.update(fresh)
        return found

    def _merge_word(self, word: bytes) -> bytes:
        """One word: the pair of lowest rank is merged, the leftmost first, as long as there is one."""
        ids = np.frombuffer(word, np.uint16).tolist()
        rank_of = self._ranks.get
        ranks = [rank_of(left << 16 | right, _NEVER) for left, right in itertools.pairwise(ids)]
        while ranks and (rank := min(ranks)) < _NEVER:
            place = ranks.index(rank)
            ids[place : place + 2] = [self._results[rank]]
            del ranks[place]
            if place:
                ranks[place - 1] = rank_of(ids[place - 1] << 16 | ids[place], _NEVER)
            if place < len(ranks):
                ranks[place] = rank_of(ids[place] << 16 | ids[place + 1], _NEVER)
        return np.array(ids, np.uint16).tobytes()


def check_can_learn() -> None:
    """Raise ModuleNotFoundError now if learning would, hours later: ``tokenizers`` is the extra ``bpe``."""
    import tokenizers  # noqa: F401


def learn_bpe(documents: Iterable[np.ndarray], merges: int) -> Bpe:
    """Merges learnt from documents of base ids; the same for the same documents in whatever order.

    In memory are the distinct words and how often each was seen, never the documents.

    Args:
        documents: base ids of one document or of several one after another; open densities do not matter.
        merges: how many merged tokens are wanted, rounded up to a multiple of 128, so that the vocabulary's size
            divides among tensor-parallel ranks. Pairs seen once are not merged: where too few are left, the result has
            fewer, if it can a multiple of 128 all the same.

    Raises:
        ModuleNotFoundError: the package ``tokenizers`` is not installed (the extra ``bpe``).
        ValueError: too many merges.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    wanted = -(-merges // STEP) * STEP
    if not 0 < wanted <= MAX_MERGES:
        raise ValueError(f"{merges} merged tokens; use 1 to {MAX_MERGES:,}")
    alphabet = [chr(character) for character in _CHARACTERS[_IS_EVENT]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + wanted,
        min_frequency=2,
        initial_alphabet=alphabet,
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator((_CHARACTERS[ids].tobytes().decode("utf-32-le") for ids in documents), trainer)
    pairs = list(_id_pairs(json.loads(tokenizer.to_str())["model"]["merges"]))
    found = Bpe(pairs)
    if found.size % STEP and found.size > STEP:
        # The pairs up to the last token that is kept: any beginning of a list of merges is one.
        kept = found.size // STEP * STEP
        last = found._results.index(v.SIZE + kept)
        found = Bpe(pairs[:last])
    return found


def _id_pairs(merges: Iterable[Sequence[str]]) -> Iterator[tuple[int, int]]:
    """Pairs of private characters as pairs of ids, in the numbering of ``Bpe``."""
    ids: dict[str, int] = {}
    next_id = v.SIZE
    for pair in merges:
        yield tuple(ids.get(part) or ord(part) - _FIRST_CHARACTER for part in pair)
        if "".join(pair) not in ids:
            ids["".join(pair)] = next_id
            next_id += 1


def read_bpe(folder: str | os.PathLike) -> Bpe:
    """The merges of a tokenizer folder.

    Raises:
        ValueError: there are none, or they are damaged.
    """
    path = Path(folder) / BPE_FILE
    try:
        content = read_json_object(path, follow_links=False)
        if any(type(part) is not int for pair in content["merges"] for part in pair):
            raise ValueError("its merges are not pairs of ids")
        bpe = Bpe(content["merges"])
        if content["tokens"] != {str(v.SIZE + place): list(base) for place, base in enumerate(bpe.spelled)}:
            raise ValueError("its tokens do not follow from its merges")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; name a folder made by `megatron-music build tokens --bpe`") from None
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the dataset again") from None
    return bpe
