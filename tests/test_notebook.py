"""The notebook, executed in a kernel of its own from its first cell to its last, with fewer steps."""

from pathlib import Path

import music21
import nbformat
import pytest
from nbclient import NotebookClient
from tiny import tiny_score, transposed

from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.score import Score

NOTEBOOK = Path(__file__).parent.parent / "examples" / "music_gpt.ipynb"


def write_stand_ins(folder: Path) -> None:
    """Pieces in the places of nine chorales of ten: converting all is `corpus bach`'s, whose tests do it, and takes a
    minute.
    """
    folder.mkdir()
    paths = sorted(path for path in music21.corpus.getComposer("bach") if path.suffix in (".mxl", ".xml"))
    for number, path in enumerate(paths):
        if number % 10:
            rise = number % 23 - 11
            tracks = [transposed(track, rise) for track in tiny_score(6 + number % 7).tracks]
            write_midi(Score(tuple(tracks), 4), folder / f"{path.stem}.mid")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_from_top_to_end(tmp_path, monkeypatch):
    """What it shows: pictures, sound, a falling loss, and pieces that are there."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (place,) = [place for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    folder = tmp_path / "walk"
    folder.mkdir()
    write_stand_ins(folder / "midi")
    given = nbformat.v4.new_code_cell(f"folder, train_iters, pieces, bars = {str(folder)!r}, 30, 1, 2")
    notebook.cells.insert(place + 1, given)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [kind for cell in cells for output in cell.outputs for kind in output.get("data", {})]
    assert (
        shown.count("image/png") == 4 and sum("Audio" in str(output) for cell in cells for output in cell.outputs) == 2
    )
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    first, last = (float(word) for word in said.split(", loss ")[1].splitlines()[0].split(" -> "))
    assert last < first - 1 and "paper-eq3" in said and "PIECE_START" in said
    assert all(read_midi(folder / name / "001.mid").tracks for name in ("new", "continued"))


def test_the_notebook_is_kept_without_outputs():
    """What it shows is of whoever runs it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
