"""Small files with values of another kind than their readers expect: each is one sentence with the file's name.

Found by fuzzing.
"""

import json

import pytest

from megatron_music.checkpoints.manifest import read_manifest
from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.config.load import read_run
from megatron_music.corpora.captioned import read_captioned
from megatron_music.data.build_options import BuildOptions, Filters
from megatron_music.tokens.bpe import BPE_FILE, Bpe, read_bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import (
    ENCODING_FILE,
    read_encoding,
    write_tokenizer_folder,
)
from megatron_music.tokens.vocabulary import NOTE_ON, TIME_DELTA


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("density_bins", [4, "x"]),
        ("density_bins", [4, 9.5]),
        ("density_bins", [True, 9]),
        ("meters", [["4/4"]]),
        ("unknown_meters", [None]),
        ("labels", [["GENRE", ["JAZZ", 5]]]),
        ("labels", [[5, ["JAZZ"]]]),
        ("bars", True),
        ("bars", 4.0),
        ("\x00", 1),
    ],
)
def test_an_encoding_of_another_kind(tmp_path, field, value):
    write_tokenizer_folder(tmp_path, Encoding(density=3, density_bins=(4, 9)))
    content = json.loads((tmp_path / ENCODING_FILE).read_text())
    assert read_encoding(tmp_path).density == 3
    (tmp_path / ENCODING_FILE).write_text(json.dumps(content | {field: value}))
    with pytest.raises(ValueError, match=f"{ENCODING_FILE} is damaged"):
        read_encoding(tmp_path)


@pytest.mark.parametrize("pair", ["[1e999, 5]", "[1.5, 5]", '["5", 5]', "[true, 5]", "[5]", "5", "[[5], 5]"])
def test_merges_that_are_not_pairs_of_ids(tmp_path, pair):
    Bpe([(NOTE_ON + 60, TIME_DELTA + 4)]).write(tmp_path)
    assert read_bpe(tmp_path).size == 1
    (tmp_path / BPE_FILE).write_text(f'{{"tokens": {{}}, "merges": [{pair}]}}')
    with pytest.raises(ValueError, match=f"{BPE_FILE} is damaged"):
        read_bpe(tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("captions.jsonl", '{"path": "a.wav", "caption": ' + "[" * 100_000, "line 1, is not JSON"),
        (
            "MusicBench_train.json",
            '{"location": "a.wav", "main_caption": ["x"]}',
            "line 1, has a caption that is no text",
        ),
        ("MusicBench_train.json", "[" * 100_000, "line 1, is not JSON"),
        (
            "captions.jsonl",
            '{"path": "/etc/passwd", "caption": "x"}',
            "line 1, names /etc/passwd, which lies outside its folder",
        ),
        ("captions.csv", "path,caption\n../a.wav,x", "line 2, names ../a.wav, which lies outside its folder"),
    ],
)
def test_captions_of_another_kind(tmp_path, name, line, said):
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(ValueError) as refused:
        read_captioned(tmp_path)
    assert f"{tmp_path / name}, {said}" in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "0"),
        ("copies", None),
        ("transpose", [1]),
        ("transpose", ["a", "b"]),
        ("fractions", [0.5, 0.5]),
        ("formats", [5]),
        ("encoding", 7),
        ("encoding", []),
        ("filters", {"tracks": 5}),
        ("filters", {"tracks": ["a", None]}),
        ("filters", 1),
        ("unknown", 1),
        ("permute_tracks", 1),
    ],
)
def test_options_of_another_kind(field, value):
    good = json.loads(json.dumps(BuildOptions(filters=Filters(tracks=(2, None), notes_per_bar=(0.5, 20))).as_json()))
    assert (
        BuildOptions.from_json(good).as_json()
        == BuildOptions(filters=Filters(tracks=(2, None), notes_per_bar=(0.5, 20))).as_json()
    )
    with pytest.raises((TypeError, AttributeError, ValueError)):
        BuildOptions.from_json(good | {field: value})


@pytest.mark.parametrize(
    "facts", ['{"size": 1e999, "sha256": "x"}', '{"size": "5", "sha256": "x"}', '{"size": 5, "sha256": 7}', "[]", "5"]
)
def test_a_manifest_of_another_kind(tmp_path, facts):
    (tmp_path / "manifest.json").write_text(f'{{"version": 1, "files": {{"a": {facts}}}}}')
    with pytest.raises(ValueError, match="does not say which files there are"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "model: {hidden_size: false}",
        "train: {micro_batch_size: 3, global_batch_size: 7}",
        "train: {nothing: 1}",
        "model: 5",
    ],
)
def test_a_run_that_cannot_be_is_told_with_its_file(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError) as refused:
        read_run(tmp_path / "config.yaml")
    assert str(refused.value).count(str(tmp_path / "config.yaml")) == 1


JOB = "#!/usr/bin/env bash\n#SBATCH --nodes=1\n{}\npython -m megatron_music recipes\n"


@pytest.mark.parametrize(
    "line", ["# half a line end \r in a line", "#SBATCH --job-name=a\x08b", "#SBATCH --time=\x1b[31m"]
)
def test_preflight_shows_odd_characters_of_a_script_and_sends_none_to_the_terminal(tmp_path, capsys, line):
    (tmp_path / "job.sbatch").write_bytes(JOB.format(line).encode())
    assert main(["preflight", str(tmp_path / "job.sbatch")]) in (0, 2)
    said = capsys.readouterr()
    assert not said.err and all(letter.isprintable() or letter == "\n" for letter in said.out)


@pytest.mark.parametrize("content", [b"\n" * (1 << 20), b"\n" * 500_000 + b"srun x", b"#!/bin/sh\n" + b"\t" * 500_000])
def test_preflight_of_a_large_script_ends_at_once(tmp_path, capsys, content):
    """Runs of white space cost their square where a pattern takes line ends for blanks."""
    (tmp_path / "job.sbatch").write_bytes(content)
    assert main(["preflight", str(tmp_path / "job.sbatch")]) in (0, 2)
    (tmp_path / "job.sbatch").write_bytes(content + b"x" * (1 << 20))
    assert main(["preflight", str(tmp_path / "job.sbatch")]) == 2
    assert "job.sbatch cannot be read (it has more than 1,048,576 bytes)" in capsys.readouterr().err


def test_a_sentence_keeps_its_beginning_and_its_end_whatever_a_file_says(tmp_path, capsys):
    (tmp_path / "tokens.txt").write_text("PIECE_START " + "y" * 70_000)
    assert main(["detokenize", str(tmp_path / "tokens.txt"), "-o", str(tmp_path / "out.mid")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("megatron-music: token 1 is 'yyy") or said.startswith("megatron-music: token 2 is 'yyy")
    assert (
        said.rstrip().endswith("which is not in the vocabulary mmmtrack-1; docs/vocabulary.md lists it")
        and len(said) < 2100
    )
