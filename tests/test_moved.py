"""Import paths of earlier versions work, with a warning."""

import importlib
import subprocess
import sys
import warnings

import pytest

import megatron_music  # noqa: F401  installs the old paths
from megatron_music._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_import_path_gives_what_is_at_the_new_one(old):
    sys.modules.pop(old, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(old.rpartition(".")[0])
    with pytest.warns(DeprecationWarning, match=MOVED[old][0]):
        module = importlib.import_module(old)
    for home in MOVED[old]:
        new = importlib.import_module(home)
        name = next(name for name, value in vars(new).items() if getattr(value, "__module__", "") == home)
        assert getattr(module, name) is getattr(new, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing
    sys.modules.pop(old, None)


def test_the_old_entry_of_the_command_line_is_there_and_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, warnings\nimport megatron_music.cli\nassert 'megatron_music.cli.entry' not in sys.modules\n"
        "with warnings.catch_warnings(record=True) as said:\n    warnings.simplefilter('always')\n    from "
        "megatron_music.cli import build_parser, main\n"
        "assert main([]) == 0 and build_parser().prog == 'megatron-music' and len(said) >= 2"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
