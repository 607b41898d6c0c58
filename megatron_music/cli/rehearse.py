"""The command ``rehearse``: one training step of a job of many GPUs, on this machine. Imports when it runs."""

import json
from pathlib import Path

from megatron_music.cli.console import (
    BAD_INPUT,
    FAILED,
    OK,
    check_output_file,
    progress_bar,
)
from megatron_music.cli.profiling import add_table_form, capacity_gb, positive
from megatron_music.config.errors import counted
from megatron_music.config.log import is_quiet, logger, print_text

_HOLDERS, _GPU = 10, "h100"


def add_rehearse(parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `recipes`, or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.field=value", help="optional changes to the recipe"
    )
    parser.add_argument("--num-gpus", type=int, required=True, metavar="N", help="GPUs of the job")
    parser.add_argument("--gpu", default=_GPU, metavar="NAME", help="which must have room, e.g. h100 (80 GB)")
    parser.add_argument(
        "--gpu-memory", type=float, default=None, metavar="GB", help="of one GPU, in place of what is known of it"
    )
    parser.add_argument(
        "--rank",
        type=int,
        action="append",
        default=None,
        metavar="R",
        help="a rank to rehearse; may be repeated (default: one of each role)",
    )
    parser.add_argument(
        "--every-micro-batch", action="store_true", help="run all of them, not the schedule's steady state twice"
    )
    parser.add_argument("--workers", type=int, default=None, help="processes; by default one for each CPU core")
    parser.add_argument(
        "--html", default=None, metavar="PAGE.html", help="write one self-contained page: time, and memory over time"
    )
    parser.add_argument(
        "--trace", default=None, metavar="FILE.json", help="write a Chrome trace, for Perfetto or `trace`"
    )
    add_table_form(parser)


def rehearse(options) -> int:
    from megatron_music.config.load import load_run
    from megatron_music.rehearsal.checks import check
    from megatron_music.rehearsal.job import RankFailed
    from megatron_music.rehearsal.job import rehearse as run_through
    from megatron_music.rehearsal.report import as_json

    if options.html:
        check_output_file(options.html, (".html",))
    if options.trace:
        check_output_file(options.trace, (".json",))
    run = load_run(options.recipe, options.overrides)
    positive("--num-gpus", options.num_gpus)
    if options.workers is not None:
        positive("--workers", options.workers)
    try:
        with progress_bar("rank") as bar:
            job = run_through(
                run,
                options.num_gpus,
                gpu=options.gpu,
                gpu_memory_gb=capacity_gb(options),
                ranks=options.rank,
                whole=options.every_micro_batch,
                workers=options.workers,
                done=lambda role: bar.update(1),
            )
    except RankFailed as error:
        logger.debug(error.details)
        logger.error(str(error))
        return FAILED
    findings = check(job)
    _write_files(options, job, findings)
    if options.form == "json":
        print(json.dumps(as_json(job, findings), indent=1))
    else:
        _print_tables(options, job)
        if options.form != "csv" and not is_quiet():
            _print_findings(findings)
    return BAD_INPUT if any(finding.status == "wrong" for finding in findings) else OK


def _write_files(options, job, findings) -> None:
    from megatron_music.rehearsal.page import rehearsal_page
    from megatron_music.rehearsal.timelines import chrome_trace
    from megatron_music.storage.writing import write_whole

    if options.html:
        title = f"Rehearsal of {options.recipe} on {counted(options.num_gpus, 'GPU')}"
        write_whole(Path(options.html), rehearsal_page(title, job, findings).encode())
    if options.trace:
        write_whole(Path(options.trace), json.dumps(chrome_trace(job)).encode())


def _print_tables(options, job) -> None:
    from megatron_music.rehearsal import report
    from megatron_music.reports.tables import format_table

    print(format_table(report.ROLE_COLUMNS, [report.role_row(rank) for rank in job.ranks], options.form))
    if options.form == "csv":
        return
    fullest = max(job.ranks, key=lambda rank: rank.peak.num_bytes)
    busiest = max(job.ranks, key=lambda rank: sum(row["bytes"] for row in report.message_rows(rank)))
    print_text(f"\nfullest moment, {fullest.role}")
    print(format_table(report.HOLDER_COLUMNS, report.holder_rows(fullest)[:_HOLDERS], options.form, shorten="what"))
    print_text(f"\nmessages of a step, {busiest.role}; sizes in bytes")
    print(format_table(report.MESSAGE_COLUMNS, report.message_rows(busiest), options.form))
    print_text(f"\nwaits for the GPU and copies to it in a step, {busiest.role}")
    print(format_table(report.WAIT_COLUMNS, report.wait_rows(busiest), options.form, shorten="where"))
    saving = max((rank.saving for rank in job.ranks), key=lambda saving: saving.written)
    print_text(
        f"\na save writes at most {saving.written / 1e9:.4g} GB per rank, over {saving.host_of_save / 1e9:.4g} GB of "
        f"host memory "
        f"({saving.host_of_async_save / 1e9:.4g} GB with checkpoint.async_save=true) and "
        f"{saving.gpu_of_save / 1e9:.4g} GB more of the GPU; "
        f"a resume takes {saving.gpu_of_resume / 1e9:.4g} GB more of the GPU"
    )
    steps = job.ranks[0].num_microbatches
    print_text(
        f"\n{counted(len(job.ranks), 'rank')} of {job.num_gpus:,}, {counted(steps, 'micro batch', 'micro batches')} "
        f"per step; "
        "GB are 10^9 bytes"
    )
    found = report.operations(job)
    if found and found.formula:
        print_text(
            f"{found.model:.6g} floating-point operations in a step of all GPUs ({found.hardware:.6g} with what is "
            "recomputed); the formula mcore "
            f"gives {found.formula:.6g}"
        )
    elif found:
        print_text(
            f"{found.model:.6g} floating-point operations in a step of all GPUs ({found.hardware:.6g} with what is "
            f"recomputed)"
        )


def _print_findings(findings) -> None:
    print()
    for finding in sorted(findings, key=lambda finding: finding.status != "wrong"):
        print_text(finding.line)
