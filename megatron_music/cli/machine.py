"""`doctor` and `preflight`."""

import json

from megatron_music.cli.console import BAD_INPUT, FAILED, OK
from megatron_music.config.log import print_text


def doctor(options) -> int:
    from megatron_music.cli.doctor import as_json, examine

    findings = examine()
    if options.json:
        print(json.dumps(as_json(findings), indent=1))
    else:
        for finding in findings:
            print_text(
                f"{finding.status:8} {finding.name:20} "
                f"{finding.detail}{'; ' + finding.remedy if finding.remedy else ''}"
            )
    return FAILED if any(finding.status == "wrong" for finding in findings) else OK


def _own_options_out(options) -> list[str]:
    """What follows the script, without --gpu, --rehearse and --json, which preflight takes wherever they stand."""
    words, kept = iter(options.arguments), []
    for word in words:
        if word == "--json":
            options.json = True
        elif word == "--rehearse":
            options.rehearse = True
        elif word == "--gpu" or word.startswith("--gpu="):
            options.gpu = word.partition("=")[2] or next(words, None)
        else:
            kept.append(word)
    return kept


def preflight(options) -> int:
    from megatron_music.cli.preflight import as_submitted
    from megatron_music.cli.preflight import preflight as look
    from megatron_music.reports.findings import NOTE, WRONG

    script, sbatch, arguments = as_submitted([options.script, *_own_options_out(options)])
    findings = look(script, arguments, sbatch=sbatch, gpu=options.gpu, rehearse=options.rehearse)
    num_wrong = sum(finding.status == WRONG for finding in findings)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in sorted(findings, key=lambda finding: (finding.status != WRONG, finding.status == NOTE)):
            print_text(finding.line)
        print_text(f"\n{num_wrong or 'nothing'} wrong" + ("" if num_wrong else ", as far as it can be seen from here"))
    return BAD_INPUT if num_wrong else OK
