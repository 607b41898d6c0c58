"""Reader of checkpoint tensors: megatron-core's torch_dist format, without executing what a file says.

The format's index is a pickle, and its objects are pickles, which run code when they are unpickled. Here the index goes
through a parser of our own (``index_pickle``), tensors through torch's ``weights_only`` unpickler, and ``common.pt`` is
not read at all.
"""

import io
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

import torch
from megatron.core.dist_checkpointing.dict_utils import merge
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.dist_checkpointing.validation import (
    determine_global_metadata,
    validate_sharding_integrity,
)
from torch.distributed import checkpoint as torch_checkpoint
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from megatron_music.checkpoints.index_pickle import parse_index
from megatron_music.storage.reading import open_regular, read_bytes

INDEX_BYTES = 1 << 30


class IndexReader(FileSystemReader):
    """torch's reader, with an index that cannot run anything and leads to no file outside the folder."""

    _index: Metadata | None = None

    def read_metadata(self, *args, **kwargs) -> Metadata:
        """The index, read once.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not one, or asks for what no index needs.
        """
        if self._index is None:
            self._index = self._read_index()
        return self._index

    def _read_index(self) -> Metadata:
        folder = Path(self.path)
        try:
            index = parse_index(read_bytes(folder / ".metadata", INDEX_BYTES, follow_links=False))
        except ValueError as error:
            raise ValueError(f"its .metadata is not an index of tensors: {error}") from None
        sizes: dict[str, int] = {}
        for place in index.storage_data.values():
            name = place.relative_path
            if PurePosixPath(name).name != name or not name.endswith(".distcp"):
                raise ValueError(f"its .metadata leads to {name[:80]!r}, which is no file of tensors in it")
            if name not in sizes:
                with open_regular(folder / name, follow_links=False) as file:
                    sizes[name] = file.seek(0, 2)
            if place.offset + place.length > sizes[name] or getattr(place, "transform_descriptors", None):
                raise ValueError(f"its .metadata names bytes of {name} that are not there, or are compressed")
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index

    def _slice_file(self, file, sinfo) -> IO[bytes]:
        """A tensor's bytes: a zip of torch's, none of whose parts is larger unpacked than it is in the file."""
        try:
            with zipfile.ZipFile(_Piece(file, sinfo.offset, sinfo.length)) as parts:
                packed = [part.filename for part in parts.infolist() if part.compress_type != zipfile.ZIP_STORED]
        except zipfile.BadZipFile:
            packed = ["the whole of it"]
        if packed:
            raise ValueError(
                f"{sinfo.relative_path} holds a tensor that torch did not write ({packed[0][:80]!r} is packed or "
                f"damaged)"
            )
        return super()._slice_file(file, sinfo)


class _Piece(io.RawIOBase):
    """Bytes of a file as a file; torch's own view cannot be read from its end, as zipfile does."""

    def __init__(self, file: IO[bytes], offset: int, length: int):
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(offset + (0, self._at, self._length)[whence], 0)
        return self._at

    def readinto(self, buffer) -> int:
        self._file.seek(self._offset + self._at)
        content = self._file.read(max(min(len(buffer), self._length - self._at), 0))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Planner(MCoreLoadPlanner):
    def load_bytes(self, read_item, value) -> None:
        self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


def _filled(sharded: dict, checkpoint: Path) -> dict:
    """The tensors of the checkpoint in the places of sharded ones."""
    by_key, names, renamed = _replace_state_dict_keys_with_sharded_keys(sharded)
    shards = [shard for of_key in by_key.values() for shard in of_key if isinstance(shard, ShardedTensor)]
    tensors = mcore_to_pyt_state_dict(by_key, True)
    planner = _Planner(shapes_validation_sharded_tensors=shards, allow_shape_mismatch_sharded_tensors={})
    reader = IndexReader(checkpoint)
    reader.read_metadata()  # not by torch, which prints the traceback of an index that it cannot read
    torch_checkpoint.load(tensors, storage_reader=reader, planner=planner)
    found = {key: _unwrap_pyt_sharded_tensor(value) for key, value in tensors.items()}
    return _replace_sharded_keys_with_state_dict_keys(found, names, renamed)


def read_tensors(request: dict, checkpoint: Path) -> dict:
    """Fill a nested dictionary of sharded tensors from a checkpoint. Every process must call this.

    The steps of megatron-core's ``load``, whose arguments change from version to version, without what it reads beside
    tensors: ``common.pt`` is for other readers, and ours is empty.

    Raises:
        CheckpointingException: the processes do not ask for each part of a tensor once.
    """
    tensors, others, factories = load_preprocess(request)
    tensors, _ = extract_sharded_base(tensors)
    _, everywhere = determine_global_metadata(tensors)
    validate_sharding_integrity(everywhere)
    merge(others, _filled(tensors, checkpoint))
    return apply_factory_merges(others, factories)
