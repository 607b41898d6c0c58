"""`make lint` never takes versions that nobody looked at for versions without a vulnerability."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parent.parent / "audit.py"
GOOD = {"name": "numpy", "version": "2.4.0", "vulns": []}
BAD = {
    "name": "pyyaml",
    "version": "5.3",
    "vulns": [{"id": "PYSEC-2021-142", "fix_versions": ["5.4"], "aliases": [], "description": "x"}],
}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}


def audited(tmp_path, *packages: dict | None) -> subprocess.CompletedProcess:
    """What is printed where pip-audit finds this of each service in turn; None: it cannot be reached."""
    tool = tmp_path / "pip-audit"
    answers = {service: found for service, found in zip(("pypi", "osv"), packages, strict=False)}
    tool.write_text(f"""#!{sys.executable}
import json, sys
answer = json.loads({json.dumps(json.dumps(answers))}).get(sys.argv[2])
if answer is None:
    sys.exit("ConnectionError: Failed to resolve 'api.osv.dev'")
open(sys.argv[sys.argv.index("--output") + 1], "w").write(json.dumps({{"dependencies": answer}}))
sys.exit(any(package.get("vulns") for package in answer))
""")
    tool.chmod(0o755)
    return subprocess.run(
        [sys.executable, str(AUDIT), "--tool", str(tool), "constraints.txt"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("answers", [([UNKNOWN],), ([UNKNOWN], None), (None, [UNKNOWN, UNKNOWN]), (None, None)])
def test_an_index_that_knows_no_package_is_a_skip_said_aloud(tmp_path, answers):
    done = audited(tmp_path, *answers)
    assert (
        done.returncode == 0
        and done.stdout.startswith("SKIPPED: pip-audit could look at nothing")
        and len(done.stdout.splitlines()) == 1
    )


def test_a_service_that_cannot_be_reached_is_followed_by_the_next(tmp_path):
    done = audited(tmp_path, None, [GOOD])
    assert done.returncode == 0 and done.stdout == "pip-audit, by OSV: 1 packages without a known vulnerability\n"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([GOOD, BAD], "pyyaml 5.3: PYSEC-2021-142, fixed in 5.4"),
        ([GOOD, UNKNOWN], "1 that could not be looked at: torch"),
    ],
)
def test_a_vulnerability_and_a_package_that_was_passed_over_fail(tmp_path, found, said):
    done = audited(tmp_path, found)
    assert done.returncode == 1 and said in done.stdout
