"""The round-trip law on whole corpora, and the size of a corpus as text.

    python benchmarks/law.py MIDI_DIR... [--json FILE]

For every file: decode(encode(quantize(score))) == quantize(score), whole piece, for carry; and every window of 4 bars,
hop 1, for clip, split and carry decodes to that slice of the piece and encodes again to the same ids. The same for
every stretch of the file in its own meters, with velocities, tempos and a DENSITY in each bar. Every tenth file is also
read by miditoolkit and compared note by note. A file that breaks the law is named, and the exit status is 1.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import miditoolkit
import numpy as np
from machine import machine
from tqdm import tqdm

from megatron_music.corpora.midi_files import find_midi_files
from megatron_music.music.grid import apply_bar_lines, quantize, sections, slice_bars
from megatron_music.music.midi import read_midi
from megatron_music.music.score import Score
from megatron_music.tokens import vocabulary
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.mmmtrack import (
    decode_piece,
    encode_piece,
    encode_windows,
    window_starts,
)

BARS, HOP = 4, 1
POLICIES = ("carry", "clip", "split")
EVERYTHING = Encoding(
    bars=BARS, hop=HOP, meters=("all",), velocity=True, tempo=True, bar_density=4, bar_density_bins=(1, 3, 6)
)


def density_bins(scores: list[Score]) -> tuple[int, ...]:
    """The 20th, 40th, 60th and 80th percentile of note counts over sounding track-windows."""
    counts = [
        len(track)
        for score in scores
        for first in window_starts(score, Encoding(bars=BARS, hop=HOP))
        for track in slice_bars(score, int(first), BARS).tracks
    ]
    return tuple(int(bin) for bin in np.percentile(counts, (20, 40, 60, 80)))


def windows_hold(score: Score, encoding: Encoding) -> bool:
    sounding = apply_bar_lines(score, encoding.bar_line)
    starts = window_starts(score, encoding)
    ids, lengths, *_ = encode_windows(score, starts, encoding)
    wanted = [window for first in starts if (window := slice_bars(sounding, int(first), BARS)).tracks]
    documents = np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return len(wanted) == len(documents) and all(
        decode_piece(document) == window and np.array_equal(encode_piece(window, encoding), document)
        for window, document in zip(wanted, documents, strict=True)
    )


def everything_holds(score: Score) -> bool:
    """The law for every stretch in the file's own meters, with every option."""
    quantized = [
        quantize(stretch, meters=True, velocity=True, tempo=True)
        for stretch in sections(score, EVERYTHING.meter_set)
        if stretch.num_notes
    ]
    return all(decode_piece(encode_piece(q, EVERYTHING)) == q and windows_hold(q, EVERYTHING) for q in quantized)


def reads_alike(path: Path) -> bool:
    """Whether symusic and miditoolkit find the same notes."""
    ours, theirs = read_midi(path), read_midi(miditoolkit.MidiFile(str(path)))
    return [track.notes.tolist() for track in ours.tracks if len(track)] == [
        track.notes.tolist() for track in theirs.tracks if len(track)
    ]


def text_bytes(scores: list[Score], policy: str, bins: tuple[int, ...]) -> int:
    """Bytes of all windows as text, one a line."""
    total = 0
    encoding = Encoding(bars=BARS, hop=HOP, bar_line=policy, density=len(bins) + 1 if bins else 0, density_bins=bins)
    for score in scores:
        ids, lengths, *_ = encode_windows(score, window_starts(score, encoding), encoding)
        total += len(vocabulary.to_text(ids)) + len(lengths) - max(len(lengths) - 1, 0) if len(lengths) else 0
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    broken, table = [], []
    for folder in options.folders:
        start = time.perf_counter()
        paths = find_midi_files([folder])
        scores, whole, everything, windowed = [], 0, 0, dict.fromkeys(POLICIES, 0)
        compared, alike = len(paths[::10]), sum(map(reads_alike, paths[::10]))
        for path in tqdm(paths, desc=folder.name, disable=None):
            read = read_midi(path)
            score = quantize(read)
            scores.append(score)
            holds = decode_piece(encode_piece(score)) == score
            whole += holds
            for policy in POLICIES:
                good = windows_hold(score, Encoding(bars=BARS, hop=HOP, bar_line=policy))
                windowed[policy] += good
                holds = holds and good
            good = everything_holds(read)
            everything += good
            holds = holds and good
            broken += [] if holds else [str(path)]
        lost = sum(score.quantization.notes_lost for score in scores)
        row = {
            "corpus": folder.name,
            "files": len(paths),
            "whole_piece_carry": whole,
            "windows": windowed,
            "own_meters_every_option": everything,
            "compared_with_miditoolkit": compared,
            "read_alike": alike,
            "notes_lost_percent": 100 * lost / sum(score.quantization.notes_in for score in scores),
            "onsets_on_grid_percent": 100
            * sum(s.quantization.onsets_on_grid for s in scores)
            / sum(s.quantization.notes_in for s in scores),
            "text_megabytes": {policy: text_bytes(scores, policy, ()) / 1e6 for policy in POLICIES},
            "seconds": time.perf_counter() - start,
        }
        bins = density_bins(scores)
        row["density_bins"] = bins
        row["text_megabytes_with_density"] = {policy: text_bytes(scores, policy, bins) / 1e6 for policy in POLICIES}
        table.append(row)
    print(f"{machine()}\n")
    print(
        "| corpus | files | whole, carry | windows, clip | windows, split | windows, carry | own meters, every option "
        "| as miditoolkit reads | notes lost | onsets on grid |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in table:
        cells = [
            row["whole_piece_carry"],
            *(row["windows"][policy] for policy in ("clip", "split", "carry")),
            row["own_meters_every_option"],
        ]
        print(
            f"| {row['corpus']} | {row['files']} | "
            + " | ".join(f"{cell}/{row['files']}" for cell in cells)
            + f" | {row['read_alike']}/{row['compared_with_miditoolkit']} | {row['notes_lost_percent']:.2f} % | "
            f"{row['onsets_on_grid_percent']:.1f} % |"
        )
    print("\n| corpus, 4 bars, hop 1, text | clip MB | split MB | carry MB |\n| --- | ---: | ---: | ---: |")
    for row in table:
        for label, key in (("", "text_megabytes"), (", with DENSITY", "text_megabytes_with_density")):
            sizes = row[key]
            print(
                f"| {row['corpus']}{label} | "
                + " | ".join(f"{sizes[policy]:.2f}" for policy in ("clip", "split", "carry"))
                + " |"
            )
    if options.json:
        result = {
            "machine": machine(),
            "rows": table,
            "command": " ".join(["python", "benchmarks/law.py", *sys.argv[1:]]),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if broken:
        sys.exit(f"the law is broken by {', '.join(broken)}")


if __name__ == "__main__":
    main()
