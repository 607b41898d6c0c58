"""Bounded reading: files of a few bytes that would cost memory, time or the process."""

import json
import os

import pytest
import yaml
from bounded import run_bounded
from hypothesis import given
from hypothesis import strategies as st

from megatron_music.storage.reading import (
    copy_regular,
    open_regular,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_json_object,
    read_yaml,
)


@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml, open_regular])
def test_a_pipe_a_folder_and_a_device_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            read(path)


def test_a_link_is_refused_where_it_is_not_wanted(tmp_path):
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "link").symlink_to("secret")
    assert read_json(tmp_path / "link") == {}
    with pytest.raises(ValueError, match="symbolic link"):
        read_json(tmp_path / "link", follow_links=False)
    with pytest.raises(ValueError, match="symbolic link"):
        copy_regular(tmp_path / "link", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    (tmp_path / "there").write_text("mine")
    with pytest.raises(FileExistsError):
        copy_regular(tmp_path / "secret", tmp_path / "there")
    copy_regular(tmp_path / "link", tmp_path / "copy", follow_links=True)
    assert (tmp_path / "copy").read_text() == "{}" and not (tmp_path / "copy").is_symlink()


def test_a_file_larger_than_its_limit_is_refused(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "large", 11) == b"x" * 11
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_bytes(tmp_path / "large", 10)


def test_nothing_is_read_of_a_file_that_is_larger_than_its_limit(tmp_path):
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 40)
    answer = run_bounded(
        """
        from megatron_music.storage.reading import TABLE_BYTES, read_bytes
        try:
            read_bytes(sys.argv[1], TABLE_BYTES)
        except ValueError as error:
            answer(str(error))
        """,
        tmp_path / "hole",
        mib=2048,
        seconds=60,
    )
    assert "more than" in answer.value and answer.peak_mib < 200


def test_a_hole_in_the_place_of_a_log_or_of_a_tokenizers_file_costs_no_memory(tmp_path):
    (tmp_path / "data" / "tokenizer").mkdir(parents=True)
    for path in (tmp_path / "metrics.jsonl", tmp_path / "data" / "tokenizer" / "more"):
        path.write_bytes(b'{"iteration": 1}\n')
        os.truncate(path, 3 << 30)
    answer = run_bounded(
        """
        from pathlib import Path
        from megatron_music.data.folders import files_below
        from megatron_music.training.metrics import cut_metrics
        folder = Path(sys.argv[1])
        cut_metrics(folder / "metrics.jsonl", 1)
        try:
            files_below(folder / "data", "tokenizer")
        except ValueError as error:
            answer(str(error))
        """,
        tmp_path,
        mib=2048,
        seconds=120,
    )
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"iteration": 1}\n'
    assert str(tmp_path / "data" / "tokenizer" / "more") in answer.value and answer.peak_mib < 500


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000])
def test_deeply_nested_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("found", [[1], "text", 1, None, True])
def test_json_that_is_not_an_object_is_refused(tmp_path, found):
    (tmp_path / "x.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="where an object is wanted"):
        read_json_object(tmp_path / "x.json")


BOMBS = {
    "aliases": "a0: &a0 [x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    "merged aliases": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
    "a list in itself": "a: &a [*a]",
    "nesting": "[" * 20_000,
    "length": "a: " + "x" * (1 << 20),
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_yaml_bomb_is_refused(text):
    with pytest.raises((ValueError, yaml.YAMLError)):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "!!timestamp 5",
        "!!bool perhaps",
        "!!int ''",
        "!!int x",
        "!!float x",
        "!!null [1]",
        "!!str [1]",
        "!!set [1]",
        "!!omap {a: 1}",
        "!!pairs 5",
        "x: 2001-13-99",
        "!!python/name:os.system",
        "!!python/object/apply:os.system [id]",
        "? [a]\n: 1",
        "{[1]: 2}",
        "<<: 5",
        "!!seq {a: 1}",
        "!!map [1]",
    ],
)
def test_a_value_that_is_not_what_its_tag_says_is_refused(text):
    """PyYAML raises whatever comes along there."""
    with pytest.raises((ValueError, yaml.YAMLError)):
        parse_yaml(text)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(VALUES)
def test_what_is_plain_is_read_as_the_libraries_read_it(value):
    assert parse_json(json.dumps(value)) == value
    text = yaml.safe_dump(value)
    assert parse_yaml(text) == yaml.safe_load(text)
