"""Known vulnerabilities of the pinned versions, by pip-audit: `make lint`.

    python tests/audit.py [--tool pip-audit] constraints.txt ...

pip-audit itself ends with 0 and "No known vulnerabilities found" where an index answers for none of the packages, as a
mirror without PyPI's advisories does. Here that is a skip, said in one line. Exit status 1 if a version has a known
vulnerability, or if it has none to tell but could not look at some of the packages.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SERVICES = {"pypi": "PyPI's advisories", "osv": "OSV"}
SECONDS = 600


def judge(report: dict) -> tuple[int | None, str]:
    """The exit status and a sentence for pip-audit's JSON; None: it looked at nothing."""
    packages = report["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return None, f"it knows none of the {len(packages)} packages"
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}{_fix(vulnerability)}"
        for package in audited
        for vulnerability in package["vulns"]
    ]
    if found:
        return 1, f"{len(found)} known vulnerabilities\n" + "\n".join(found)
    missed = [package["name"] for package in packages if "skip_reason" in package]
    if missed:
        return (
            1,
            f"{len(audited)} packages without a known vulnerability, and {len(missed)} that could not be looked at: "
            f"{', '.join(missed)}",
        )
    return 0, f"{len(audited)} packages without a known vulnerability"


def _fix(vulnerability: dict) -> str:
    versions = vulnerability.get("fix_versions")
    return f", fixed in {' and '.join(versions)}" if versions else ""


def ask(tool: str, service: str, files: list[str]) -> tuple[int | None, str]:
    """What one service knows; see ``judge``."""
    requirements = [word for file in files for word in ("-r", file)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "audit.json")
        options = [
            "--no-deps",
            "--disable-pip",
            "--progress-spinner",
            "off",
            "--timeout",
            "10",
            "--format",
            "json",
            "--output",
            str(out),
        ]
        try:
            done = subprocess.run(
                [tool, "--vulnerability-service", service, *options, *requirements],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, str(error)
        if not out.is_file():
            return None, (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1][:300]
        return judge(json.loads(out.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", default=str(Path(sys.executable).with_name("pip-audit")))
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    reasons = []
    for service, name in SERVICES.items():
        status, sentence = ask(options.tool, service, options.files)
        if status is not None:
            print(f"pip-audit, by {name}: {sentence}")
            return status
        reasons.append(f"{name}: {sentence}")
    print(
        f"SKIPPED: pip-audit could look at nothing; no version was checked for known vulnerabilities "
        f"({'; '.join(reasons)})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
