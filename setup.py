"""Copies the job scripts, container files and examples of the clone into the wheel; everything else is in
pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("launch", "ngc", "examples")
ROOT = Path(__file__).parent


class BuildWithShippedFiles(build_py):
    """``megatron_music/shipped/<folder>`` in a wheel; an editable install reads the clone's own folders."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "megatron_music", "shipped")
        shutil.rmtree(target, ignore_errors=True)
        for folder in filter(lambda name: (ROOT / name).is_dir(), SHIPPED):
            skipped = shutil.ignore_patterns("__pycache__", ".*", "notebook")
            shutil.copytree(ROOT / folder, target / folder, ignore=skipped)


setup(cmdclass={"build_py": BuildWithShippedFiles})
