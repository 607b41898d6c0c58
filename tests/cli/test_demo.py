"""The folder of ``demo``: pieces of another checkpoint go, and an odd record of them is no error."""

import pytest

from megatron_music.cli.demo import _remove_others

FACTS = {"checkpoint": "iter_0000100", "pieces": 2}


@pytest.mark.parametrize(
    ("record", "stays"),
    [('{"checkpoint": "iter_0000100", "pieces": 2}', True), ('{"checkpoint": ', False), ("[1]", False), (None, False)],
)
def test_pieces_stay_where_their_record_says_that_they_are_of_this_checkpoint(tmp_path, record, stays):
    folder = tmp_path / "chorales"
    folder.mkdir()
    for name in ("001.mid", "001.wav", "notes.txt"):
        (folder / name).touch()
    if record is not None:
        (folder / "made-with.json").write_text(record)
    _remove_others(folder, FACTS)
    assert sorted(path.name for path in folder.iterdir()) == [
        *(["001.mid", "001.wav"] if stays else []),
        "made-with.json",
        "notes.txt",
    ]
