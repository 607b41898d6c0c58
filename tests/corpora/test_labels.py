"""Labels from a CSV: which names there are, which files have them, and every mistake in one sentence with its line."""

import hashlib
import pickle

import pytest

from megatron_music.corpora.labels import Labels
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.labels import label_ids
from megatron_music.tokens.lexicon import Wording
from megatron_music.tokens.tokenizer_folder import read_encoding, write_tokenizer_folder


def read(tmp_path, *lines: str) -> Labels:
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Labels.read(path)


def words(labels: Labels, path: str, content: bytes = b"") -> str:
    return Wording(Encoding(labels=labels.names)).to_text(labels.ids_for(path, content))


def test_columns_become_labels_and_values_names(tmp_path):
    labels = read(
        tmp_path,
        "mood,file,genre,Style",
        "happy,a.mid,rock,",
        ",b.mid, hip  hop ,late",
        "sad,c.mid,jazz,Late",
        ",d.mid,,",
    )
    assert labels.names == (("STYLE", ("LATE",)), ("GENRE", ("HIP_HOP", "JAZZ", "ROCK")), ("MOOD", ("HAPPY", "SAD")))
    assert words(labels, "a.mid") == "GENRE=ROCK MOOD=HAPPY"
    assert words(labels, "b.mid") == "STYLE=LATE GENRE=HIP_HOP"
    assert labels.ids_for("c.mid", b"") == (v.IDS["STYLE=0"], v.IDS["GENRE=1"], v.IDS["RESERVED=1"])
    assert labels.ids_for("d.mid", b"") == labels.ids_for("unknown.mid", b"") == ()
    assert pickle.loads(pickle.dumps(labels)) == labels


def test_other_labels_share_the_reserved_range_in_their_order():
    labels = (("MOOD", ("HAPPY", "SAD")), ("GENRE", ("JAZZ",)), ("ERA", ("NEW", "OLD")))
    first = v.IDS["RESERVED=0"]
    assert label_ids(labels) == {
        "MOOD=HAPPY": first,
        "MOOD=SAD": first + 1,
        "GENRE=JAZZ": v.IDS["GENRE=0"],
        "ERA=NEW": first + 2,
        "ERA=OLD": first + 3,
    }


def test_a_path_matches_the_end_of_a_path_in_whole_names(tmp_path):
    labels = read(tmp_path, "path,genre", "x.mid,any", "jazz/x.mid,jazz", "./old/jazz/x.mid,old", "/abs/y.mid,abs")
    assert words(labels, "x.mid") == "GENRE=ANY"
    assert words(labels, "/data/rock/x.mid") == "GENRE=ANY"
    assert words(labels, "/data/more/jazz/x.mid") == "GENRE=JAZZ"
    assert words(labels, "set.tar.gz/old/jazz/x.mid") == "GENRE=OLD"  # the longest key holds; also in an archive
    assert words(labels, "notjazz/x.mid") == "GENRE=ANY"
    assert labels.ids_for("data/ax.mid", b"") == labels.ids_for("X.mid", b"") == labels.ids_for("y.mid", b"") == ()
    assert words(labels, "/mnt/abs/y.mid") == "GENRE=ABS"


def test_letters_with_accents_match_however_they_are_spelled(tmp_path):
    assert words(read(tmp_path, "path,genre", "cafe\u0301.mid,a"), "dir/caf\u00e9.mid") == "GENRE=A"


@pytest.mark.parametrize("column", ["md5", "sha256", "hash", "MD5", "SHA256"])
def test_hashes_are_of_the_bytes(tmp_path, column):
    kind = "sha256" if column.lower() == "hash" else column.lower()
    digest = hashlib.new(kind, b"notes").hexdigest()
    labels = read(tmp_path, f"{column},genre", f"{digest.upper()},jazz", f"{digest},Jazz")
    assert words(labels, "other.mid", b"notes") == "GENRE=JAZZ"
    assert labels.ids_for(f"{digest}.mid", b"other notes") == ()


def test_one_column_may_have_both_hashes(tmp_path):
    md5, sha256 = hashlib.md5(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
    labels = read(tmp_path, "hash,genre", f"{md5},one", f"{sha256},two")
    assert [words(labels, "", content) for content in (b"a", b"b", b"c")] == ["GENRE=ONE", "GENRE=TWO", ""]


def test_quotes_and_a_mark_of_byte_order_are_read(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes('\ufeffpath,GENRE\r\n"a, b.mid",jazz\r\n\r\n'.encode())
    assert words(Labels.read(path), "a, b.mid") == "GENRE=JAZZ"
    assert Labels.read(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([""], "has the columns none, where one must be the key"),
        (["genre", "jazz"], "one must be the key"),
        (["path,md5,genre", "a,b,c"], "path, md5, genre, where one must be the key"),
        (["path", "a.mid"], "at least one such as GENRE"),
        (["path,genre,GENRE", "a.mid,a,b"], "give each label one, at least"),
        (["path,genre 2", "a.mid,a"], "the column 'GENRE 2'"),
        (["path,tempo", "a.mid,fast"], "label 'TEMPO' cannot be a token"),
        (["path,genre", "a.mid"], "line 2 has 1 columns and the header 2"),
        (["path,genre", "a.mid,jazz", ",jazz"], "line 3 has no path"),
        (["path,genre", "a.mid,rock;pop"], "line 2 gives GENRE as 'rock;pop'; a file has one value"),
        (["path,genre", "a.mid,jazz", "b.mid,rock", "./a.mid,rock"], "line 4 gives ./a.mid other labels"),
        (["md5,genre", "abc,jazz"], "line 2 has the md5 'abc'; write 32 hexadecimal digits"),
        (["hash,genre", "x" * 32 + ",jazz"], "write 32 or 64 hexadecimal digits"),
        (["path,genre", 'a.mid,"jazz'], "line 2 is no CSV"),
        (["path,genre", "a.mid,5"], "GENRE=5 reads like another token"),
        (["path,genre", "a.mid,PAD"], "GENRE=PAD reads like another token"),
        (["path,genre", *(f"{n}.mid,g{n}" for n in range(129))], "GENRE has more than 128 names; group the rarest"),
        (["path,style", *(f"{n}.mid,s{n}" for n in range(33))], "STYLE has more than 32 names"),
        (
            ["path,mood,era", *(f"{n}.mid,m{n},e{n}" for n in range(12))],
            "other than GENRE and STYLE, ERA among them, have more than 22",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, lines, said):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, *lines)
    sentence = str(caught.value)
    assert said in sentence and "labels.csv" in sentence and "\n" not in sentence and ";" in sentence, sentence


def test_what_is_no_text_or_not_there(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"path,genre\na.mid,\xff\n")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        Labels.read(tmp_path / "labels.csv")
    with pytest.raises(FileNotFoundError):
        Labels.read(tmp_path / "nowhere.csv")


def test_as_many_names_as_fit_are_read(tmp_path):
    rows = [f"{n}.mid,g{n},s{n % 32},m{n % 20},{'old' if n % 2 else 'new'}" for n in range(128)]
    names = dict(read(tmp_path, "path,genre,style,mood,era", *rows).names)
    assert {label: len(found) for label, found in names.items()} == {"STYLE": 32, "GENRE": 128, "MOOD": 20, "ERA": 2}


def test_the_words_of_labels_are_frozen_in_the_folder(tmp_path):
    encoding = Encoding(labels=(("GENRE", ("JAZZ", "R+B")), ("MOOD", ("HAPPY",))))
    write_tokenizer_folder(tmp_path, encoding)
    wording = Wording(read_encoding(tmp_path))
    ids = [v.PIECE_START, v.IDS["GENRE=1"], v.IDS["RESERVED=0"], v.IDS["GENRE=2"], v.IDS["RESERVED=21"]]
    text = "PIECE_START GENRE=R+B MOOD=HAPPY GENRE=2 RESERVED=21"
    assert wording.to_text(ids) == text and wording.to_ids(text).tolist() == ids
    assert wording.to_ids(wording.to_text(range(v.SIZE))).tolist() == list(range(v.SIZE))
    with pytest.raises(ValueError, match="token 1 is 'GENRE=0'"):
        wording.to_ids("GENRE=0")


@pytest.mark.parametrize(
    "labels",
    [
        (("genre", ("JAZZ",)),),
        (("NOTE_ON", ("X",)),),
        (("MOOD", ("A B",)),),
        (("MOOD", ("",)),),
        (("MOOD", ("A", "A")),),
        (("MOOD", ("A",)), ("MOOD", ("B",))),
    ],
)
def test_labels_that_cannot_be_are_refused(labels):
    with pytest.raises(ValueError):
        Encoding(labels=labels)
