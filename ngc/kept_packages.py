"""The packages of NVIDIA's image that nothing may replace, as a constraint file for pip; and whether they are still
there.

    python kept_packages.py write FILE [VERSIONS]   before anything is installed; VERSIONS pins what the image does not have
    python kept_packages.py check FILE              afterwards: exit status 1, and a sentence for each that has changed

From the packages' metadata rather than `pip freeze`, which names what was installed from a file or editable by its
place, without a version. Used by the Dockerfile; needs the standard library alone.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

KEPT = re.compile(
    r"torch|torchvision|torchaudio|triton|pytorch-triton|numpy|apex|flash-attn|transformers"
    r"|megatron-(core|bridge|energon)|nemo-run|nemo-toolkit|transformer-engine.*|nvidia-.*"
)


def installed() -> dict[str, str]:
    """Version by normalized name."""
    found = {}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()
        found.setdefault(name, package.version)  # the first on the path is the one that is imported
    return found


def pins(file: str, there: dict[str, str]) -> list[str]:
    """The lines NAME==VERSION of a list of versions whose packages the image does not have: of those it has, its own
    are right.
    """
    lines = [line for line in Path(file).read_text().splitlines() if re.fullmatch(r"[\w.-]+==[\w.+!-]+", line)]
    return [line for line in lines if re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() not in there]


def main(action: str, file: str, versions: str | None = None) -> int:
    there = installed()
    lines = [f"{name}=={version}" for name, version in sorted(there.items()) if KEPT.fullmatch(name)]
    if action == "write":
        added = (
            [line for line in pins(versions, there) if not KEPT.fullmatch(line.split("==")[0].lower())]
            if versions
            else []
        )
        Path(file).write_text("".join(f"{line}\n" for line in [*lines, *added]))
        print("kept:", ", ".join(lines))
        return 0
    expected = [line for line in Path(file).read_text().split() if KEPT.fullmatch(line.split("==")[0])]
    now = dict(line.split("==") for line in lines)
    changed = [line for line in expected if line not in lines]
    for line in changed:
        name, version = line.split("==")
        print(
            f"{name} is {now.get(name, 'gone')}, and was {version} in the image; name no package that replaces it",
            file=sys.stderr,
        )
    return 1 if changed else 0


if __name__ == "__main__":
    if sys.argv[1:2] not in (["write"], ["check"]) or not 3 <= len(sys.argv) <= 3 + (sys.argv[1] == "write"):
        sys.exit("kept_packages.py: give write or check, and a file; to write, also a list of versions if you like")
    sys.exit(main(*sys.argv[1:]))
