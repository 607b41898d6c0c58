"""The command ``trace``: what a profiled stretch was spent on. Imports when it runs."""

import json
from pathlib import Path

from megatron_music.cli.console import check_output_file
from megatron_music.cli.profiling import add_table_form
from megatron_music.config.errors import counted
from megatron_music.config.log import print_text


def add_trace(parser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="torch.profiler's Chrome trace (.json, .json.gz) or nsys's .sqlite; one a rank",
    )
    parser.add_argument("--html", default=None, metavar="PAGE.html", help="write one self-contained page")
    add_table_form(parser)


def trace(options) -> None:
    from megatron_music.profiling.kernel_kinds import KINDS
    from megatron_music.profiling.trace import (
        read_trace,
        share_of,
        slowest_kernels,
        slowest_ranges,
    )
    from megatron_music.profiling.trace_page import trace_page
    from megatron_music.reports.tables import format_table
    from megatron_music.storage.writing import write_whole

    if options.html:
        check_output_file(options.html, (".html",))
    timelines = [timeline for file in options.files for timeline in read_trace(Path(file))]
    shares = [share_of(timeline) for timeline in timelines]
    ranges, kernels = slowest_ranges(timelines), slowest_kernels(timelines)
    if options.html:
        title = f"Trace of {', '.join(Path(file).name for file in options.files)}"
        write_whole(Path(options.html), trace_page(title, shares, ranges, kernels, _notes(timelines)).encode())
    rows = [share._asdict() for share in shares]
    if options.form == "json":
        print(json.dumps({"ranks": rows, "ranges": ranges, "kernels": kernels}, indent=1))
        return
    columns = {"rank": "", "device": "", "seconds": ".4g"} | dict.fromkeys((*KINDS, "idle"), ".1%")
    columns |= {"exposed_communication": ".1%", "hidden_communication": ".1%"}
    print(format_table(columns, rows, options.form, shorten="rank"))
    if options.form == "csv":
        return
    if ranges:
        print(
            "\n"
            + format_table(
                {"range": "", "times": "", "seconds": ".4g", "skew": ".1%"}, ranges, options.form, shorten="range"
            )
        )
    print("\n" + format_table({"kernel": "", "kind": "", "seconds": ".4g"}, kernels, options.form, shorten="kernel"))
    for note in _notes(timelines):
        print_text(f"\n{note}")


def _notes(timelines) -> list[str]:
    """What a reader of the tables must bear in mind."""
    notes = []
    if any(timeline.device == "CPU" for timeline in timelines):
        notes.append("no GPU in the trace: the innermost operators on the CPU stand in for kernels")
    if graphs := sum(timeline.num_graphs for timeline in timelines):
        notes.append(
            f"CUDA graphs traced as a whole, which count as other: {graphs}; `nsys profile --cuda-graph-trace=node` "
            f"shows "
            "their kernels"
        )
    if left_out := sum(timeline.num_left_out for timeline in timelines):
        notes.append(f"left out, without a name, a start or a length: {counted(left_out, 'event')}")
    return notes
