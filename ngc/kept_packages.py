"""The packages of NVIDIA's image that nothing may replace, as a constraint file for pip; and whether they are still there.

    python kept_packages.py write FILE      before anything is installed
    python kept_packages.py check FILE      afterwards: exit status 1, and a sentence for each that has changed

From the packages' metadata rather than `pip freeze`, which names what was installed from a file or editable by its place,
without a version. Used by the Dockerfile; needs the standard library alone.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

KEPT = re.compile(
    r"torch|torchvision|torchaudio|triton|pytorch-triton|numpy|apex|flash-attn|transformers"
    r"|megatron-(core|bridge|energon)|nemo-run|nemo-toolkit|transformer-engine.*|nvidia-.*"
)


def kept() -> dict[str, str]:
    """Version by normalized name."""
    found = {}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()
        if KEPT.fullmatch(name):
            found.setdefault(name, package.version)  # the first on the path is the one that is imported
    return found


def main(action: str, file: str) -> int:
    lines = [f"{name}=={version}" for name, version in sorted(kept().items())]
    if action == "write":
        Path(file).write_text("".join(f"{line}\n" for line in lines))
        print("kept:", ", ".join(lines))
        return 0
    expected = Path(file).read_text().split()
    now = dict(line.split("==") for line in lines)
    changed = [line for line in expected if line not in lines]
    for line in changed:
        name, version = line.split("==")
        print(f"{name} is {now.get(name, 'gone')}, and was {version} in the image; name no package that replaces it", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "check"):
        sys.exit("kept_packages.py: give write or check, and a file")
    sys.exit(main(*sys.argv[1:]))
