"""The reader of checkpoint tensors: megatron-core's torch_dist format, without executing what a file says.

The format's index is a pickle, and its objects are pickles, which run code when they are read. Here the index is read by an
unpickler that knows the dozen classes an index is made of and refuses every other, tensors and objects by torch's
``weights_only`` unpickler, and ``common.pt`` not at all.
"""

import pickle
from pathlib import Path, PurePosixPath

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
from megatron.core.dist_checkpointing.validation import determine_global_metadata, validate_sharding_integrity
from torch.distributed import checkpoint as torch_checkpoint
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta

_FORMAT = "torch.distributed.checkpoint"
# What an index is made of. None of them does anything but hold what it is given.
ALLOWED = {
    (f"{_FORMAT}.metadata", "BytesStorageMetadata"),
    (f"{_FORMAT}.metadata", "ChunkStorageMetadata"),
    (f"{_FORMAT}.metadata", "Metadata"),
    (f"{_FORMAT}.metadata", "MetadataIndex"),
    (f"{_FORMAT}.metadata", "StorageMeta"),
    (f"{_FORMAT}.metadata", "TensorProperties"),
    (f"{_FORMAT}.metadata", "TensorStorageMetadata"),
    (f"{_FORMAT}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_FORMAT}.filesystem", "_StorageInfo"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(("torch", name) for name in ("float64", "float32", "float16", "bfloat16", "bool")),
    *(("torch", name) for name in ("uint8", "int8", "int16", "int32", "int64")),
}


def _memory_format(owner, name: str) -> _MEM_FORMAT_ENCODING:
    """A member of the one enumeration in an index: some Pythons, such as 3.11.2, write one as a call of ``getattr``."""
    if owner is not _MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(f"its .metadata asks for an attribute of {owner!r}, which no index of tensors does")
    return owner[name]


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"its .metadata asks for {module}.{name}, which no index of tensors is made of")
        return super().find_class(module, name)


class IndexReader(FileSystemReader):
    """torch's reader, with an index that cannot run anything and leads to no file outside the folder."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        """The index.

        Raises:
            ValueError: it is none, or asks for what no index needs.
        """
        with open(Path(self.path) / ".metadata", "rb") as file:
            try:
                index = _IndexUnpickler(file).load()
            except Exception as error:  # a damaged pickle fails in many ways
                raise ValueError(str(error) or "its .metadata is no index") from None
        if not isinstance(index, Metadata):
            raise ValueError(f"its .metadata is a {type(index).__name__} and no index")
        for place in index.storage_data.values():
            path = PurePosixPath(place.relative_path)
            if len(path.parts) != 1 or path.suffix != ".distcp" or (Path(self.path) / path).is_symlink():
                raise ValueError(f"its .metadata leads to {str(path)!r}, which is no file of tensors in it")
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


class _Planner(MCoreLoadPlanner):
    def load_bytes(self, read_item, value) -> None:
        self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


def _filled(sharded: dict, checkpoint: Path) -> dict:
    """The tensors of the checkpoint in the places of sharded ones."""
    by_key, names, renamed = _replace_state_dict_keys_with_sharded_keys(sharded)
    shards = [shard for of_key in by_key.values() for shard in of_key if isinstance(shard, ShardedTensor)]
    tensors = mcore_to_pyt_state_dict(by_key, True)
    planner = _Planner(shapes_validation_sharded_tensors=shards, allow_shape_mismatch_sharded_tensors={})
    torch_checkpoint.load(tensors, storage_reader=IndexReader(checkpoint), planner=planner)
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
