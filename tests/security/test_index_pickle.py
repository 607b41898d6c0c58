"""The index of a checkpoint is a pickle: what a hostile one asks for is refused, at once and without memory."""

import contextlib
import itertools
import pathlib
import pickle
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_music.checkpoints.index_pickle import parse_index

FORMAT = b"\x80\x04"
GLOBAL = "c{}\n{}\n".format


def index() -> Metadata:
    size = torch.Size([4, 6])
    chunks = [
        ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([4, 3])),
        ChunkStorageMetadata(torch.Size([0, 3]), torch.Size([4, 3])),
    ]
    tensors = {
        "weight": TensorStorageMetadata(TensorProperties(torch.bfloat16), size, chunks),
        "note": BytesStorageMetadata(),
    }
    places = {
        MetadataIndex("weight", chunk.offsets, number): _StorageInfo("__0_0.distcp", 100 * number, 90)
        for number, chunk in enumerate(chunks)
    }
    return Metadata(tensors, planner_data={"a": ("b", 1, -5, 2**40, True, None)}, storage_data=places)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_index_is_read_as_pickle_reads_it(protocol):
    content = pickle.dumps(index(), protocol)
    assert parse_index(content) == pickle.loads(content) == index()


def alters(kind: bytes, fields: bytes) -> bytes:
    """BUILD on a class with (None, {...}) sets attributes of the class."""
    return FORMAT + kind + b"N}" + fields + b"s\x86b0" + pickle.dumps(index(), 4)[2:]


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


HOSTILE = {
    "a class is altered": alters(GLOBAL("pathlib", "Path").encode(), text("rename") + b"N"),
    "a size's class is altered": alters(GLOBAL("torch", "Size").encode(), text("numel") + b"N"),
    "an object's class is altered": alters(
        GLOBAL("torch.distributed.checkpoint.metadata", "MetadataIndex").encode(), text("fqn") + b"N"
    ),
    "a function is called": FORMAT + GLOBAL("os", "system").encode() + text("true") + b"\x85R.",
    "an attribute is asked for": FORMAT
    + GLOBAL("builtins", "getattr").encode()
    + GLOBAL("pathlib", "Path").encode()
    + text("home")
    + b"\x86R.",
    "a class is made with EXT": FORMAT + b"\x82\x01.",
    "persistent objects": FORMAT + b"Pabc\n.",
    "an instance by name": FORMAT + b"(ios\nsystem\n.",
    "keys whose hash takes for ever": FORMAT
    + b"})\x94"
    + b"".join(b"h" + bytes([n]) + b"\x86\x94" for n in range(60))
    + b"Ns.",
    "a value whose hash overflows the stack": FORMAT
    + GLOBAL("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING").encode()
    + b")"
    + b"\x85" * 1_000_000
    + b"\x85R.",
    "a name that doubles when it is printed": FORMAT
    + GLOBAL("torch.serialization", "_get_layout").encode()
    + b")\x94"
    + b"".join(b"h" + bytes([n]) + b"\x86\x94" for n in range(60))
    + b"\x85R.",
    "a name that is nested deeply": FORMAT
    + GLOBAL("torch.serialization", "_get_layout").encode()
    + b")"
    + b"\x85" * 5_000
    + b"\x85R.",
    "a size of a million dimensions": FORMAT
    + GLOBAL("torch", "Size").encode()
    + b"]("
    + b"K\x01" * 1_000_000
    + b"e\x85R.",
    "a memo of 4 GB": FORMAT + b"Nr\xff\xff\xff\xff.",
    "a text that is not there": FORMAT + b"X\xff\xff\xff\xffabc.",
    "nothing on the stack": FORMAT + b"ssss.",
    "no end": FORMAT + b"N" * 100,
    "a list": pickle.dumps([1, 2], 4),
    "nothing": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_index_is_refused_and_changes_nothing(content):
    before = {kind: dict(vars(kind)) for kind in (pathlib.Path, MetadataIndex, Metadata)}
    with pytest.raises(ValueError):
        parse_index(content)
    assert before == {kind: dict(vars(kind)) for kind in before}


MODULUS = sys.hash_info.modulus  # numbers that differ by it have the same hash


def test_keys_with_one_hash_are_refused_before_they_take_for_ever():
    numbers = b"".join(b"\x8a\x0c" + (number * MODULUS).to_bytes(12, "little") + b"N" for number in range(1, 200_001))
    with pytest.raises(ValueError, match="more than 64 of its keys have the same hash"):
        parse_index(FORMAT + b"}(" + numbers + b"u.")
    found = index()
    sizes = itertools.islice(itertools.product((0, MODULUS, 2 * MODULUS, 3 * MODULUS, 4 * MODULUS), repeat=4), 100)
    found.storage_data |= {
        MetadataIndex("weight", torch.Size(size)): _StorageInfo("__0_0.distcp", 0, 90) for size in sizes
    }
    assert len({hash(key) for key in found.storage_data}) < 5
    with pytest.raises(ValueError, match="more than 64 of its keys have the same hash"):
        parse_index(pickle.dumps(found, 4))


@pytest.mark.parametrize(
    "fields",
    [
        {"state_dict_metadata": {"weight": 1}},
        {"state_dict_metadata": []},
        {"storage_data": {"weight": _StorageInfo("a.distcp", 0, 1)}},
        {"storage_data": {MetadataIndex("weight"): _StorageInfo("a.distcp", -1, 1)}},
        {"storage_data": {MetadataIndex("weight"): _StorageInfo("a.distcp", 0, "1")}},
        {
            "state_dict_metadata": {
                "w": TensorStorageMetadata(
                    TensorProperties(), torch.Size([2]), [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([2, 2]))]
                )
            }
        },
    ],
)
def test_an_index_with_parts_of_other_kinds_is_refused(fields):
    found = index()
    vars(found).update(fields)
    with pytest.raises(ValueError):
        parse_index(pickle.dumps(found, 4))


def test_members_of_the_enumeration_are_read_in_both_spellings():
    called = FORMAT + GLOBAL("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING").encode() + b"K\x01\x85R"
    owner = GLOBAL("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING").encode()
    named = FORMAT + GLOBAL("builtins", "getattr").encode() + owner + text(_MEM_FORMAT_ENCODING(1).name) + b"\x86R"
    for member in (called, named):
        with pytest.raises(ValueError, match="it is a _MEM_FORMAT_ENCODING"):  # which was read, and is not an index
            parse_index(member + b".")


@given(st.data())
def test_damaged_indexes_are_read_or_refused(data):
    content = bytearray(pickle.dumps(index(), 4))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "put", "copy"]))
        if change == "flip":
            content[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[place : place + data.draw(st.integers(1, 20))]
        elif change == "put":
            content[place:place] = data.draw(st.binary(max_size=8))
        else:
            content[place:place] = content[: data.draw(st.integers(0, 60))]
        if not content:
            break
    with contextlib.suppress(ValueError):
        assert isinstance(parse_index(bytes(content)), Metadata)


def test_a_large_number_is_bounded_by_the_file():
    content = FORMAT + b"\x8a\xff" + b"\xff" * 255 + b"."
    with pytest.raises(ValueError, match="it is a int"):
        parse_index(content)
