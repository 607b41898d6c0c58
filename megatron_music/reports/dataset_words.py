"""What a report says of the files that were left out, and of the music of those that were used, in words.

The console, ``report.md`` and the page show the same sentences.
"""

from collections.abc import Mapping

from megatron_music.config.errors import counted
from megatron_music.reports import reasons
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import encoding_of_json

SHOWN_METERS = 6
FEW_FILES, FEW_TOKENS = 5, 0.01  # of validation, whose loss then says little: files, and a share of all tokens


def meters_in_words(meters: Mapping) -> str:
    """How many files are in which meter; empty for a report of an earlier version."""
    if not meters or not meters["files"]:
        return ""
    undeclared = meters["undeclared"]
    parts = _counted(meters["files"], lambda meter: " (as if not declared)" if undeclared.get(meter) else "")
    changing = meters["changing"]
    return parts + (f"; {changing:,} change it" if changing else "")


def left_out_in_words(report: Mapping) -> list[tuple[str, int]]:
    """(reason, files) with the meters found and the option that takes them, the most frequent first."""
    rows = sorted(report["files"]["left_out"].items(), key=lambda row: (-row[1], row[0]))
    return [(reason_in_words(reason, report), count) for reason, count in rows]


def reason_in_words(reason: str, report: Mapping) -> str:
    """A reason with what was met instead, and its remedy."""
    encoding = _encoding_of(report)
    met = report.get("meters", {}).get("left_out", {}) if encoding and reason == reasons.no_meter(encoding) else {}
    way_out = reasons.remedy(reason, encoding) if encoding else ""
    return f"{reason}{f' ({_counted(met)})' if met else ''}{f'; {way_out}' if way_out else ''}"


def warnings(report: Mapping) -> list[str]:
    """What a person should know before training, each in a sentence."""
    found, files = [], report["files"]
    chosen = files["found"] - files.get("dropped_copies", 0)
    missing = chosen - files["used"]
    if missing > reasons.WARN_ABOVE * chosen:
        worst = max(files["left_out"].items(), key=lambda row: row[1], default=("", 0))
        encoding = _encoding_of(report)
        if files["quarantined"] > worst[1]:
            why = f"{files['quarantined']:,} are damaged"
        else:
            way_out = reasons.remedy(worst[0], encoding) if encoding else ""
            why = f"{worst[1]:,} for one reason: {worst[0]}" + (f"; {way_out}" if way_out else "")
        found.append(f"{missing / chosen:.0%} of the files were left out, {why}")
    notes = report["quantization"]
    judged, chance = notes.get("files_judged", 0), notes.get("files_by_chance", 0)
    if chance > reasons.WARN_ABOVE * judged:
        found.append(
            f"in {chance:,} of {judged:,} files onsets lie as chance would put them, "
            f"{notes['mean_onset_error_steps']:.2f} "
            "steps from the grid on average in all: performances recorded without a grid, whose bars and beats mean "
            "nothing"
        )
    split_by = report.get("split_by")
    if split_by and split_by["contradictions"]:
        found.append(
            f"{counted(split_by['contradictions'], 'piece')} given to more than one split: the same notes are in "
            f"training and "
            "held out; --drop-duplicates keeps the first file of each"
        )
    rows = report["splits"]
    empty = [split for split, row in rows.items() if not row["documents"] and _is_wanted(report, split)]
    if empty:
        found.append(f"{' and '.join(empty)} would need more files and stay{'s' * (len(empty) == 1)} empty")
    found += _few_for_validation(report)
    for name, levels in report.get("density_levels", {}).items():
        if len(levels["levels"]) < levels["asked"]:
            found.append(
                f"--{name.replace('_', '-')} {levels['asked']} gives {counted(len(levels['levels']), 'level')}: "
                "the other quantiles fall on the same numbers of notes"
            )
    return found


def _few_for_validation(report: Mapping) -> list[str]:
    """A sentence where the loss of validation would judge very few pieces, or very little music."""
    rows = report["splits"]
    valid, tokens = rows.get("valid", {}), sum(row["tokens"] for row in rows.values())
    if not valid.get("documents") or not _is_wanted(report, "valid"):
        return []
    judged = valid.get("files", FEW_FILES)
    remedy = "use --split with a larger share, or more files"
    if judged < FEW_FILES:
        return [
            f"valid has {counted(judged, 'file')}: its loss judges "
            f"{'one piece' if judged == 1 else f'{judged} pieces'}; {remedy}"
        ]
    if valid["tokens"] < FEW_TOKENS * tokens:
        return [f"valid has {valid['tokens'] / tokens:.1%} of the tokens: its loss judges little music; {remedy}"]
    return []


def split_by_in_words(report: Mapping) -> str:
    """What ``--split-by`` did; empty where it was not asked for."""
    found = report.get("split_by")
    if not found:
        return ""
    how = report["options"]["split_by"]
    parts = [f"as given by {how}" if found["given"] else f"by {how}: {counted(found['groups'], 'group')}"]
    if found["joined"]:
        parts.append(f"{found['joined']:,} of them share notes with another and stay with it")
    if found["files_without"]:
        parts.append(f"{counted(found['files_without'], 'file')} without one, split by notes")
    return ", ".join(parts)


def levels_in_words(levels: Mapping) -> str:
    """The levels of a DENSITY with the counts each has."""
    parts = []
    for row in levels["levels"]:
        span = f"{row['from']}" if row.get("from") == row.get("to") else f"{row['from']} to {row['to']}"
        parts.append(f"{row['level']}: {span}" if "from" in row else f"{row['level']}: none")
    return "; ".join(parts)


def _encoding_of(report: Mapping) -> Encoding | None:
    try:
        return encoding_of_json(report["encoding"])
    except (TypeError, ValueError):
        return None  # of an earlier version, whose remedies are not known


def _is_wanted(report: Mapping, split: str) -> bool:
    fractions = report.get("options", {}).get("fractions")
    return bool(fractions and fractions[list(report["splits"]).index(split)])


def _counted(files: Mapping[str, int], more=lambda meter: "") -> str:
    rows = list(files.items())
    named = ", ".join(f"{count:,} in {meter}{more(meter)}" for meter, count in rows[:SHOWN_METERS])
    rest = sum(count for _, count in rows[SHOWN_METERS:])
    return named + (f", {rest:,} in {counted(len(rows) - SHOWN_METERS, 'other meter')}" if rest else "")
