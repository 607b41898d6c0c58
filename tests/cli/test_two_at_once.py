"""Commands that fill a folder refuse one that another process is filling, before they write or load anything."""

import pytest
from tiny import write_corpus

from megatron_music.cli.entry import main
from megatron_music.storage.holding import LOCK, hold
from megatron_music.training.run_folder import held_folder

COMMANDS = {
    "generate midi": ["generate", "midi", "{checkpoint}", "-o", "{out}", "--num", "3"],
    "generate audio": ["generate", "audio", "{checkpoint}", "-o", "{out}", "--prompt", "slow"],
    "corpus sounds": ["corpus", "sounds", "{midi}", "-o", "{out}", "--num", "2", "--own"],
    "corpus bach": ["corpus", "bach", "-o", "{out}"],
    "render": ["render", "{midi}", "-o", "{out}", "--own"],
    "demo": ["demo", "-o", "{out}"],
    "launch": ["launch", "-o", "{out}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_command_on_a_folder_is_refused_with_who_is_at_work(tmp_path, capsys, name):
    (tmp_path / "checkpoint").mkdir()
    write_corpus(tmp_path / "midi")
    words = [
        word.format(checkpoint=tmp_path / "checkpoint", out=tmp_path / "out", midi=tmp_path / "midi")
        for word in COMMANDS[name]
    ]
    (tmp_path / "out").mkdir()
    with hold(tmp_path / "out" / LOCK, "busy"):
        before = sorted((tmp_path / "out").iterdir())
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"another `{name}` writes to {tmp_path / 'out'} (process " in said and said.count("\n") == 1
        assert sorted((tmp_path / "out").iterdir()) == before
    assert list((tmp_path / "out").iterdir()) == []


def test_a_sweep_and_a_run_do_not_share_a_folder_with_another(tmp_path, capsys):
    assert main(["sweep", "tiny", "-o", str(tmp_path / "sweep"), "--plan"]) == 0
    with held_folder(tmp_path / "sweep"):
        assert main(["sweep", str(tmp_path / "sweep")]) == 2
    assert "is being measured by another process (process " in capsys.readouterr().err


def test_rendering_one_file_holds_no_folder(tmp_path):
    write_corpus(tmp_path / "midi")
    midi = min((tmp_path / "midi").glob("*.mid"))
    with hold(tmp_path / LOCK, "busy"):
        assert main(["render", str(midi), "-o", str(tmp_path / "a.wav"), "--own", "--sample-rate", "8000"]) == 0
