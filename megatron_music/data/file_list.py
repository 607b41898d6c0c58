"""``files.jsonl``: what became of every input file, one line each in canonical order.

Written from the plan and the shards' records, a shard at a time, once every file has its split.
"""

import json
from pathlib import Path

import numpy as np

from megatron_music.config.sections import SPLITS
from megatron_music.data.plan import Plan
from megatron_music.data.shard_reader import read_record
from megatron_music.data.shard_totals import Tally
from megatron_music.data.splits import DROPPED
from megatron_music.reports import reasons
from megatron_music.reports.dataset import FILES_FILE


def write_file_list(plan: Plan, tally: Tally, folder: Path) -> None:
    """Write the list into a dataset in the making.

    Each line has ``path``, ``split`` (null: the file gives no document), ``first_document`` and ``documents`` (its
    documents are ``first_document`` to ``first_document + documents - 1`` of the split, from 0) and ``reason`` (null
    where there is none). ``meter`` is the one in force longest, ``same_notes_as`` the line, from 1, of the first file
    with the same notes, ``group`` what ``--split-by`` found.
    """
    kept = tally.kept_documents()
    firsts = np.zeros(len(kept), np.int64)
    for split in range(len(SPLITS)):
        of_split = tally.splits == split
        firsts[of_split] = np.cumsum(kept[of_split]) - kept[of_split]
    with open(folder / FILES_FILE, "x", encoding="utf-8") as file:
        for number in range(len(plan.shards)):
            rows = zip(plan.read_entries(number), read_record(plan, number)["files"], strict=True)
            for place, (entry, record) in enumerate(rows, start=plan.shards[number].first):
                split, first = int(tally.splits[place]), int(tally.first[place])
                is_used = split != DROPPED
                line = {
                    "path": entry.name,
                    "split": SPLITS[split] if is_used else None,
                    "first_document": int(firsts[place]) if is_used else None,
                    "documents": int(kept[place]),
                    "reason": None if is_used else _reason(record),
                }
                if record.get("meter"):
                    line["meter"] = record["meter"]
                if first not in (place, DROPPED):
                    line["same_notes_as"] = first + 1
                if entry.group:
                    line["group"] = entry.group
                file.write(json.dumps(line) + "\n")


def _reason(record: dict) -> str:
    if "damage" in record:
        return record["damage"]
    return record.get("left_out") or (reasons.SAME_NOTES if record.get("documents") else reasons.NO_DOCUMENTS)
