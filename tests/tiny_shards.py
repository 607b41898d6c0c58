"""Finished shards made by hand: what planning and encoding leave for a merge."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_music.data.build_options import BuildOptions
from megatron_music.storage.sealed import sealed

FINGERPRINT = "f" * 64
NOTES = {
    "notes_in": 4,
    "notes_out": 3,
    "notes_lost": 1,
    "notes_shortened": 0,
    "notes_lengthened": 0,
    "onsets_on_grid": 2,
    "onset_error_sum": 0.5,
    "max_onset_error": 0.25,
}


@dataclass
class TinyFile:
    """One input file: its documents, copy by copy, each without DOCUMENT_END."""

    copies: list[list[list[int]]] = field(default_factory=list)
    content: str = ""
    digest: str = ""
    damage: str = ""
    left_out: str = ""
    source: int = 0
    path: str = ""
    member: str = ""


def write_shards(
    out: Path, files: list[TinyFile], options: BuildOptions, files_per_shard: int = 2, sources: int = 1
) -> Path:
    """``OUT.building`` with every shard finished; returns it."""
    building = out.with_name(f"{out.name}.building")
    (building / "shards").mkdir(parents=True)
    shards, lines = [], []
    for first in range(0, len(files), files_per_shard):
        part = files[first : first + files_per_shard]
        text = [json.dumps(_entry(first + number, file)) + "\n" for number, file in enumerate(part)]
        shards.append(
            {"first": first, "files": len(part), "offset": sum(map(len, lines)), "bytes": sum(map(len, text))}
        )
        lines += text
        _write_shard(building / "shards" / f"{len(shards) - 1:05}", first, part)
    (building / "entries.jsonl").write_text("".join(lines))
    plan = {
        "version": "0",
        "fingerprint": FINGERPRINT,
        "options": options.as_json(),
        "shards": shards,
        "sources": [f"/music/source{number}" for number in range(sources)],
    }
    (building / "plan.json").write_bytes(sealed(json.dumps(plan)))
    return building


def _entry(number: int, file: TinyFile) -> dict:
    entry = {"path": file.path or f"/music/{number}.mid", "source": file.source}
    return entry | ({"member": file.member} if file.member else {})


def _write_shard(path: Path, first: int, files: list[TinyFile]) -> None:
    documents = [document for file in files for copy in file.copies for document in copy]
    parts = {
        "bin": np.array([i for document in documents for i in (*document, 767)], "<u2").tobytes(),
        "lengths": np.array([len(document) + 1 for document in documents], "<i4").tobytes(),
    }
    for part, content in parts.items():
        path.with_suffix(f".{part}").write_bytes(content)
    record = {
        part: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for part, content in parts.items()
    }
    record["fingerprint"] = FINGERPRINT
    record["first"] = first
    record["ids"] = [values.tolist() for values in np.unique(np.frombuffer(parts["bin"], "<u2"), return_counts=True)]
    record["files"] = [_record(first + number, file) for number, file in enumerate(files)]
    record["density"] = [len(files)] + [0] * 127
    record["notes"] = {name: [value] * sum(bool(file.copies) for file in files) for name, value in NOTES.items()}
    record["onset_error"] = [len(files)] + [0] * 9
    path.with_suffix(".json").write_bytes(sealed(json.dumps(record)))


def _record(number: int, file: TinyFile) -> dict:
    name = hashlib.sha256(str(number).encode()).hexdigest()
    record = {
        "digest": file.digest or name,
        "content": "" if file.damage else (file.content or file.digest or name)[:32],
        "documents": [len(copy) for copy in file.copies],
        "tokens": [sum(len(document) + 1 for document in copy) for copy in file.copies],
        "damage": file.damage,
        "left_out": file.left_out,
        "rescued": False,
        "windows_left_out": {"too quiet": 1} if file.copies else {},
    }
    return {name: value for name, value in record.items() if value}
