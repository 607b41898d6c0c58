"""Reader of the pickle that is the index of a torch_dist checkpoint (``.metadata``), without Python's unpickler.

A pickle is a program for a stack machine. This machine has the 30 instructions that such an index is written with. It
makes numbers, text, tuples, lists, dictionaries and objects of the classes in ``_OBJECTS`` and ``_CALLS``; a class is
never a value that an instruction could alter, keys are text or ``MetadataIndex``, and memory grows with the length of
the file alone.
"""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import PosixPath
from typing import Any, NamedTuple, NoReturn

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

_FORMAT = "torch.distributed.checkpoint"
MAX_DIMENSIONS = 64  # of a tensor
MAX_SAME_HASH = (
    64  # keys with one hash: those of numbers can be chosen, and the time for a dictionary of them is quadratic
)
# Dataclasses: made empty, then given fields by name.
_OBJECTS: dict[tuple[str, str], type] = {
    **{
        (f"{_FORMAT}.metadata", kind.__name__): kind
        for kind in (
            BytesStorageMetadata,
            ChunkStorageMetadata,
            Metadata,
            MetadataIndex,
            StorageMeta,
            TensorProperties,
            TensorStorageMetadata,
        )
    },
    (f"{_FORMAT}.filesystem", "_StorageInfo"): _StorageInfo,
}
_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
)


class _Name(NamedTuple):
    """A class or function of the file: only its name, looked up when it is used."""

    module: str
    name: str


def _size(parts) -> torch.Size:
    if not (
        type(parts) in (tuple, list)
        and len(parts) <= MAX_DIMENSIONS
        and all(type(part) is int and 0 <= part < 1 << 63 for part in parts)
    ):
        raise ValueError("a size is not made of whole numbers")
    return torch.Size(parts)


def _path(*parts) -> PosixPath:
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("a path is not made of text")
    return PosixPath(*parts)


def _layout(name) -> torch.layout:
    if type(name) is not str or name != "torch.strided":
        raise ValueError("a layout is not torch.strided")
    return torch.strided


def _memory_format(value) -> _MEM_FORMAT_ENCODING:
    if type(value) is not int:
        raise ValueError("a memory format is not a whole number")
    return _MEM_FORMAT_ENCODING(value)


def _member(owner, name) -> _MEM_FORMAT_ENCODING:
    """Some Pythons, such as 3.11.2, write a member of an enumeration as a call of ``getattr``."""
    if (
        type(owner) is not _Name
        or owner != _Name(f"{_FORMAT}.metadata", "_MEM_FORMAT_ENCODING")
        or type(name) is not str
    ):
        raise ValueError("it asks for an attribute")
    return _MEM_FORMAT_ENCODING[name]


_CALLS: dict[tuple[str, str], Callable] = {
    ("torch", "Size"): _size,
    ("pathlib", "Path"): _path,
    ("pathlib", "PosixPath"): _path,
    ("pathlib._local", "PosixPath"): _path,
    ("torch.serialization", "_get_layout"): _layout,
    (f"{_FORMAT}.metadata", "_MEM_FORMAT_ENCODING"): _memory_format,
    ("builtins", "getattr"): _member,
    ("__builtin__", "getattr"): _member,  # by protocols 0 to 2
}
_VALUES = {("torch", name): getattr(torch, name) for name in _DTYPES}


def parse_index(content: bytes) -> Metadata:
    """The index in a file's content.

    Raises:
        ValueError: it is not the index of a checkpoint, with the reason as half a sentence.
    """
    try:
        found = _run(content)
        if type(found) is not Metadata:
            raise ValueError(f"it is a {type(found).__name__}")
        _check(found)
        return found
    except ValueError:
        raise
    except (
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        struct.error,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from None


def _refuse(code: int, position: int) -> NoReturn:
    raise ValueError(f"it has the instruction {code:#04x} at byte {position:,}, which no index of tensors needs")


def _run(content: bytes) -> Any:
    stack: list = []
    marks: list[list] = []
    memo: dict[int, Any] = {}
    hashes: Counter[int] = Counter()  # of the keys so far
    at = 0
    while True:
        code = content[at]
        at += 1
        if code == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code == 0x68:  # BINGET
            stack.append(memo[content[at]])
            at += 1
        elif code == 0x6A:  # LONG_BINGET
            stack.append(memo[struct.unpack_from("<I", content, at)[0]])
            at += 4
        elif code == 0x4B:  # BININT1
            stack.append(content[at])
            at += 1
        elif code == 0x4D:  # BININT2
            stack.append(struct.unpack_from("<H", content, at)[0])
            at += 2
        elif code == 0x4A:  # BININT
            stack.append(struct.unpack_from("<i", content, at)[0])
            at += 4
        elif code == 0x8A:  # LONG1
            end = at + 1 + content[at]
            stack.append(int.from_bytes(_piece(content, at + 1, end), "little", signed=True))
            at = end
        elif code == 0x8C:  # SHORT_BINUNICODE
            end = at + 1 + content[at]
            stack.append(_piece(content, at + 1, end).decode())
            at = end
        elif code == 0x58:  # BINUNICODE
            end = at + 4 + struct.unpack_from("<I", content, at)[0]
            stack.append(_piece(content, at + 4, end).decode())
            at = end
        elif code == 0x28:  # MARK
            marks.append(stack)
            stack = []
        elif code == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif code in (0x85, 0x86, 0x87):  # TUPLE1, TUPLE2, TUPLE3
            count = code - 0x84
            stack[-count:] = [_popped(stack, count)]
        elif code == 0x74:  # TUPLE
            items, stack = tuple(stack), marks.pop()
            stack.append(items)
        elif code == 0x7D:  # EMPTY_DICT
            stack.append({})
        elif code == 0x5D:  # EMPTY_LIST
            stack.append([])
        elif code == 0x75:  # SETITEMS
            items, stack = stack, marks.pop()
            _set(stack[-1], items, hashes)
        elif code == 0x73:  # SETITEM
            items = stack[-2:]
            del stack[-2:]
            _set(stack[-1], items, hashes)
        elif code == 0x65:  # APPENDS
            items, stack = stack, marks.pop()
            _list(stack[-1]).extend(items)
        elif code == 0x61:  # APPEND
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif code == 0x81:  # NEWOBJ
            arguments, name = stack.pop(), stack.pop()
            stack.append(_made(name, arguments))
        elif code == 0x52:  # REDUCE
            arguments, name = stack.pop(), stack.pop()
            stack.append(_called(name, arguments))
        elif code == 0x62:  # BUILD
            state = stack.pop()
            _fill(stack[-1], state)
        elif code == 0x93:  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            stack.append(_named(module, name))
        elif code == 0x63:  # GLOBAL
            end = content.index(b"\n", content.index(b"\n", at) + 1)
            module, name = content[at:end].decode().split("\n")
            stack.append(_named(module, name))
            at = end + 1
        elif code in (0x71, 0x72):  # BINPUT, LONG_BINPUT
            width = 1 if code == 0x71 else 4
            memo[int.from_bytes(_piece(content, at, at + width), "little")] = stack[-1]
            at += width
        elif code in (0x88, 0x89):  # NEWTRUE, NEWFALSE
            stack.append(code == 0x88)
        elif code == 0x4E:  # NONE
            stack.append(None)
        elif code == 0x80:  # PROTO
            at += 1
        elif code == 0x95:  # FRAME: its length only helps a reader of a stream
            at += 8
        elif code == 0x2E:  # STOP
            return stack.pop()
        else:
            _refuse(code, at - 1)


def _piece(content: bytes, start: int, end: int) -> bytes:
    if end > len(content):
        raise ValueError("it is cut")
    return content[start:end]


def _popped(stack: list, count: int) -> tuple:
    if len(stack) < count:
        raise ValueError("it is damaged")
    return tuple(stack[-count:])


def _list(value) -> list:
    if type(value) is not list:
        raise ValueError("it appends to something that is not a list")
    return value


def _set(owner, items: list, hashes: Counter[int]) -> None:
    if type(owner) is not dict or len(items) % 2:
        raise ValueError("it sets items of something that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is MetadataIndex:
            _check_key(key)
        elif type(key) not in (str, int):
            raise ValueError(f"a key is a {type(key).__name__}")
        if type(key) is not str:  # whose hash nobody can foresee
            hashes[hash(key)] += 1
            if hashes[hash(key)] > MAX_SAME_HASH:
                raise ValueError(f"more than {MAX_SAME_HASH} of its keys have the same hash")
        owner[key] = value


def _check_key(key: MetadataIndex) -> None:
    """Fields whose hash is cheap."""
    offset, index = getattr(key, "offset", None), getattr(key, "index", None)
    if type(key.fqn) is not str or type(offset) not in (torch.Size, type(None)) or type(index) not in (int, type(None)):
        raise ValueError("a tensor's key is damaged")


def _named(module, name) -> Any:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name is not text")
    if (module, name) in _VALUES:
        return _VALUES[module, name]
    if (module, name) in _OBJECTS or (module, name) in _CALLS:
        return _Name(module, name)
    raise ValueError(f"it asks for {module[:80]}.{name[:80]}, which no index of tensors is made of")


def _made(name, arguments) -> Any:
    kind = _OBJECTS.get(name) if type(name) is _Name else None
    if kind is None or arguments != ():
        return _called(name, arguments)  # torch.Size, by some versions
    return object.__new__(kind)


def _called(name, arguments) -> Any:
    function = _CALLS.get(name) if type(name) is _Name else None
    if function is None or type(arguments) is not tuple or len(arguments) > MAX_DIMENSIONS:
        raise ValueError("it calls something that is not a function of an index")
    return function(*arguments)


def _fill(made, state) -> None:
    """Give an object its fields."""
    kind = type(made)
    if kind not in _OBJECTS.values():
        raise ValueError(f"it alters a {kind.__name__}")
    if kind is TensorProperties:
        if type(state) is not tuple or not all(isinstance(value, _PLAIN) for value in state):
            raise ValueError("a tensor's properties are damaged")
        made.__setstate__(state)
        return
    names = {field.name for field in fields(kind)}
    if type(state) is not dict or not state.keys() <= names:
        raise ValueError(f"a {kind.__name__} has other fields")
    vars(made).update(state)


_PLAIN = (torch.dtype, torch.layout, bool, _MEM_FORMAT_ENCODING)


def _check(index: Metadata) -> None:
    """That everything a reader looks at is of its type."""
    tensors, places = index.state_dict_metadata, index.storage_data
    if type(tensors) is not dict or type(places) is not dict:
        raise ValueError("it lists no tensors")
    for name, found in tensors.items():
        if type(name) is not str or type(found) not in (TensorStorageMetadata, BytesStorageMetadata):
            raise ValueError("it lists something that is not a tensor")
        if type(found) is TensorStorageMetadata:
            is_whole = (
                type(found.properties) is TensorProperties
                and type(found.size) is torch.Size
                and type(found.chunks) is list
            )
            if not is_whole or not all(_is_chunk(chunk, len(found.size)) for chunk in found.chunks):
                raise ValueError(f"the tensor {name[:80]!r} is damaged")
    for key, place in places.items():
        if type(key) is MetadataIndex:
            _check_key(key)  # which may have been altered after it became a key
        is_whole = type(key) is MetadataIndex and type(place) is _StorageInfo and type(place.relative_path) is str
        if not is_whole or not all(
            type(value) is int and 0 <= value < 1 << 63 for value in (place.offset, place.length)
        ):
            raise ValueError("the place of a tensor is damaged")


def _is_chunk(chunk, dimensions: int) -> bool:
    return type(chunk) is ChunkStorageMetadata and all(
        type(value) is torch.Size and len(value) == dimensions for value in (chunk.offsets, chunk.sizes)
    )
