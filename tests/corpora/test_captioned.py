"""Listings of captions: no caption is lost without a word, and every refusal names its line."""

import json
import unicodedata

import pytest

from megatron_music.corpora.captioned import read_captioned, with_names_on_disk


def read(folder, content: str | bytes, name: str = "captions.csv"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(sound.path, sound.captions) for sound in read_captioned(folder)]


@pytest.mark.parametrize(
    "content",
    [
        "path,caption\na.wav,slow organ\n",
        "path, caption\na.wav, slow organ\n",
        "Path,Caption\r\na.wav,slow organ\r\n",
        "FILE_NAME ,CAPTION \na.wav,slow organ\n",
        "\ufeffpath,caption\ra.wav,slow organ\r",
        'path,caption\n\n"a.wav","slow organ",,\n,\n',
        "caption,path,group\nslow organ,a.wav\n",
    ],
)
def test_headers_in_any_case_with_spaces_bom_and_any_line_ends_are_read(tmp_path, content):
    assert read(tmp_path, content) == [("a.wav", ("slow organ",))]


def test_quoted_captions_keep_their_commas_quotes_and_lines(tmp_path):
    found = read(tmp_path, 'path,caption\na.wav, "slow, with ""choir"",\nin C"\nb.wav,a "sad" tune\n')
    assert found == [("a.wav", ('slow, with "choir", in C',)), ("b.wav", ('a "sad" tune',))]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("path,caption\na.wav,x\nb.wav,slow organ, with choir, in C\n", "line 3, has 4 cells and its header 2 columns"),
        ("path;caption\na.wav;slow organ\n", "is separated by semicolons, where commas are read"),
        ("path\tcaption\na.wav\tslow organ\n", "is separated by tabs"),
        ("path,caption\na.wav;slow organ\n", "line 2, is separated by semicolons"),
        ('path,caption\na.wav,x\nb.wav,"slow organ\nc.wav,y\nd.wav,z\n', "line 3, opens a quote that is not closed"),
        ('path,caption\na.wav,"slow organ\nb.wav,"fast organ"\n', "line 2, opens a quote that is not closed"),
        ('path,caption\na.wav,"slow' + " organ" * 30_000, "line 2, opens a quote that is not closed"),
        ("path,caption\na.wav,x\nb.wav,café\n".encode("latin-1"), "line 3, is not UTF-8 .byte 0xe9."),
        ("\ufeffpath,caption\r\na.wav,x\r\nb.wav,caf".encode() + b"\xe9\r\n", "line 3, is not UTF-8"),
        ("path,caption\na.wav,x\n".encode("utf-16"), "line 1, is not UTF-8"),
        ("path,caption,Caption\na.wav,x,y\n", "two columns named caption"),
        ("path,words\na.wav,x\n", "has no column caption or captions; its header has path, words"),
        ("a.wav,slow organ\n", "has no column path or file_name"),
        ("", "is empty"),
    ],
)
def test_what_would_lose_a_caption_is_refused_with_its_line(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value) and "captions.csv" in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"path": "a.wav", "caption": "x"}\n\n{"path": "b.wav", "text": "y"}\n', "line 3, has no caption"),
        ('{"path": "a.wav", "caption": "x"}\n{"path": "b.wav"', "line 2, is not JSON"),
        ('{"path": "a.wav", "captions": {"x": 1}}\n', "line 1, has no path and caption"),
    ],
)
def test_a_line_of_json_without_a_caption_is_refused(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, content, "captions.jsonl")
    assert read(tmp_path, json.dumps({"Path": "a.wav", "Caption": "x"}), "captions.jsonl") == [("a.wav", ("x",))]


@pytest.mark.parametrize("disk", ["NFC", "NFD"])
def test_an_accent_in_a_name_is_the_same_in_the_listing_and_on_disk(tmp_path, disk):
    name = unicodedata.normalize(disk, "Lieder für Zoë/café.wav")
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"")
    other = unicodedata.normalize("NFD" if disk == "NFC" else "NFC", name)
    mixed = unicodedata.normalize("NFC", name.split("/")[0]) + "/" + unicodedata.normalize("NFD", name.split("/")[1])
    read(tmp_path, f"path,caption\n{other},x\n{mixed},y\n{name},z\nnot/thére.wav,w\n")
    found = with_names_on_disk(tmp_path, read_captioned(tmp_path))
    assert {sound.path: set(sound.captions) for sound in found} == {name: {"x", "y", "z"}, "not/thére.wav": {"w"}}
    assert all((tmp_path / sound.path).exists() for sound in found if sound.path == name)
