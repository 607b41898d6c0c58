"""Damaged MIDI files through the real builder: none may crash or hang it, each is encoded lawfully or said to be
damaged.

    python benchmarks/fuzz.py MIDI_DIR [--mutants 20000] [--seed 0] [--workers 2] [--json FILE]

The mutants (bit flips, truncation, splices, huge deltas and others, see tests/mutants.py) go into one tar, which is
built with every meter, velocities, tempos and densities on. Then every document is decoded and encoded again to the
same ids. Exit status 1 if a file was lost without a reason, a document is unlawful, or a worker crashed or hung.
"""

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from machine import machine
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from mutants import mutant

from megatron_music.corpora.midi_files import find_files
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.plan import plan_build
from megatron_music.data.shard import encode_shard
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece

# DENSITY stands open in shards: what a document says again must be the counts themselves.
ENCODING = Encoding(bars=4, hop=4, meters=("all",), velocity=True, tempo=True, density=4, bar_density=3)


def is_lawful(document: np.ndarray) -> bool:
    """Whether a document (with its DOCUMENT_END) decodes and encodes to itself, within 4 bars and the meters."""
    score = decode_piece(document, ENCODING.steps_per_quarter)
    return (
        score.num_bars == ENCODING.bars
        and document[-1] == v.DOCUMENT_END
        and np.array_equal(encode_piece(score, ENCODING), document[:-1])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    files = [Path(file.path).read_bytes() for file in find_files([options.folder])]
    kinds = []
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "mutants.tar")
        with tarfile.open(archive, "w") as tar:
            for number in tqdm(range(options.mutants), desc="making", disable=None):
                kind, content = mutant(files, number, options.seed)
                kinds.append(kind)
                member = tarfile.TarInfo(f"{number:06}.mid")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        build = BuildOptions(encoding=ENCODING, seconds_per_file=10)
        started = time.perf_counter()
        plan = plan_build([archive], Path(folder, "out"), build)
        encode_shard(
            plan.building, workers=options.workers, progress=lambda items, total: tqdm(items, total=total, disable=None)
        )
        seconds = time.perf_counter() - started
        outcomes, damages, unlawful, lost, documents = Counter(), Counter(), [], [], 0
        for number in tqdm(range(len(plan.shards)), desc="checking", disable=None):
            stem = plan.building / "shards" / f"{number:05}"
            ids, lengths = np.fromfile(f"{stem}.bin", "<u2"), np.fromfile(f"{stem}.lengths", "<i4")
            pieces = iter(np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else ())
            record = json.loads(Path(f"{stem}.json").read_bytes())
            for entry, file in enumerate(record["files"], start=record["first"]):
                count = sum(file.get("documents", ()))
                good = all([is_lawful(next(pieces)) for _ in range(count)])
                documents += count
                if not good:
                    unlawful.append(entry)
                damage, left_out = file.get("damage"), file.get("left_out")
                if not count and not (damage or left_out):
                    lost.append(entry)
                outcomes[
                    "quarantine"
                    if damage
                    else "left out"
                    if left_out
                    else "rescued"
                    if file.get("rescued")
                    else "encoded"
                ] += 1
                if damage:
                    damages[_short(damage)] += 1
    crashes = sum(count for reason, count in damages.items() if "crashed" in reason)
    hangs = sum(count for reason, count in damages.items() if "takes longer" in reason)
    result = {
        "mutants": options.mutants,
        "seed": options.seed,
        "of": options.folder.name,
        "kinds": dict(Counter(kinds)),
        "outcomes": dict(outcomes),
        "documents": documents,
        "unlawful": unlawful,
        "lost": lost,
        "crashes": crashes,
        "hangs": hangs,
        "quarantine": dict(damages.most_common(20)),
        "seconds": seconds,
        "workers": options.workers,
        "machine": machine(),
        "command": " ".join(["python", "benchmarks/fuzz.py", *sys.argv[1:]]),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if unlawful or lost or crashes or hangs or sum(outcomes.values()) != options.mutants:
        sys.exit("the builder is not safe from these files")


def _short(damage: str) -> str:
    """The reason without its numbers."""
    return "".join("#" if letter.isdigit() else letter for letter in damage.partition(";")[0])[:90]


if __name__ == "__main__":
    main()
