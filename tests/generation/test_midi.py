import itertools
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_worker import MAX_TOKENS, pieces
from raw_midi import events_of
from songs import SONGS
from tiny import tiny_score
from tiny_gpt import RandomModel, launch, tiny_dataset, tiny_run

from megatron_music.cli.entry import build_parser, main
from megatron_music.cli.generate import _report, _write_pieces
from megatron_music.generation.continuing import Continuation
from megatron_music.generation.decoder import Decoder
from megatron_music.generation.from_checkpoint import load_composer
from megatron_music.generation.midi import Composer
from megatron_music.generation.output_folder import output_folder
from megatron_music.generation.sampling import CachedGPT, Sampler, UncachedGPT
from megatron_music.music.grid import quantize, slice_steps
from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.score import Score, Tempo, TimeSignature, Track
from megatron_music.parallel import distributed
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder
from megatron_music.training import loop

WORKER = Path(__file__).parents[1] / "generation_worker.py"


@pytest.fixture(scope="module", params=["rope", "learned_absolute"])
def trained(request, tmp_path_factory) -> Path:
    """A tiny model after a few steps, so that its choices are not all alike."""
    folder = tmp_path_factory.mktemp("trained")
    data = tiny_dataset(folder / "data")
    write_tokenizer_folder(data / "tokenizer", Encoding(infill=True))
    run = tiny_run(
        data,
        f"checkpoint.save={folder / 'run'}",
        "model.seq_length=256",
        "train.train_iters=60",
        f"model.position_embedding_type={request.param}",
    )
    assert loop.train(run) == 0
    return folder / "run"


@pytest.fixture
def composer(trained):
    yield load_composer(trained)
    distributed.stop()


def test_the_pages_python_writes_what_the_commands_write(trained, tmp_path, monkeypatch):
    """Run as printed, in a folder with a run and a song."""
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page.py").write_text(script, encoding="utf-8")
    (tmp_path / "run").symlink_to(trained)
    write_midi(tiny_score(6), tmp_path / "song.mid")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("page.py", run_name="__main__")
    bars = "track 2 bars 3-4"
    for options, names in (
        (["--num", "2", "--bars", "8"], ["new-1.mid", "new-2.mid"]),
        (["--continue", "song.mid", "--bars", "8"], ["longer.mid"]),
        (["--infill", bars, "--from", "song.mid"], ["filled.mid"]),
    ):
        assert main(["generate", "midi", "run", "-o", names[0][:-4], *options]) == 0
        for number, name in enumerate(names, start=1):
            assert Path(name).read_bytes() == Path(names[0][:-4], f"{number:03}.mid").read_bytes()


def test_pieces_are_the_same_however_a_model_is_read_and_split(trained, tmp_path):
    """By the decoder, by megatron-core with its cache and without one; in one process, under TP 2 and under PP 2."""
    expected = pieces(load_composer(trained), UncachedGPT)
    assert pieces(load_composer(trained), CachedGPT) == pieces(load_composer(trained), Decoder) == expected
    distributed.stop()
    launch(2, WORKER, trained, tmp_path / "two.json")
    split = json.loads((tmp_path / "two.json").read_text())
    assert len(split) == 3 and all(found == expected for found in split.values())
    constrained, free, sampled = expected["constrained"], expected["free"], expected["sampled"]
    assert all(40 < len(ids) <= MAX_TOKENS for ids in constrained) and len({len(ids) for ids in sampled}) > 2
    assert len({token_id for ids in free for token_id in ids}) > 1


def test_every_piece_decodes_and_encodes_again(composer):
    scores = composer.compose(range(8))
    assert all(score.num_bars == 4 and score.tracks for score in scores)
    assert all(decode_piece(encode_piece(score)) == score for score in scores)
    assert len({encode_piece(score).tobytes() for score in scores}) == 8


def test_a_seed_gives_its_piece_whatever_the_batch(composer):
    """Alone, among eight, among others, and whether the batch shrinks before its end or after."""
    together = composer.compose(range(8))
    assert composer.compose([5]) == [together[5]] and composer.compose([6, 3]) == [together[6], together[3]]
    assert composer.compose([20, 5, 21, 2])[1::2] == [together[5], together[2]]


def test_instruments_and_length(composer):
    (score,) = composer.compose([0], bars=7, instruments=["soprano", "33", "DRUMS"])
    assert [(track.voice, track.program, track.is_drum) for track in score.tracks] == [
        ("SOPRANO", 52, False),
        ("", 33, False),
        ("", 0, True),
    ]
    assert score.num_bars == 7
    assert composer.compose([0], bars=2)[0].num_bars == 2
    with pytest.raises(ValueError, match="'lute' is unknown"):
        composer.compose([0], instruments=["lute"])


def test_a_continuation_keeps_what_is_given(composer):
    given = Score(tiny_score(6).tracks[:2], 4)
    scores = composer.continue_scores([given, given], 5, [1, 2])
    for score in scores:
        assert score.num_bars == 11 and slice_steps(score, 0, 96).tracks == given.tracks
        assert [track.voice for track in score.tracks] == ["SOPRANO", "ALTO"]
    assert scores[0] != scores[1]


def test_a_continuation_starts_from_the_last_part_in_four_four():
    score = Score(tiny_score(8).tracks, 4, (TimeSignature(0, 3, 4), TimeSignature(48, 4, 4)))
    assert Continuation(score, Encoding()).opening.num_bars == 5
    in_three = Score(score.tracks, 4, (TimeSignature(0, 3, 4),))
    with pytest.raises(
        ValueError,
        match=r"the piece ends in 3/4 .bar 11., which the model has no token for; it has 4/4; continue a piece that",
    ):
        Continuation(in_three, Encoding())
    assert Continuation(in_three, Encoding(meters=("3/4", "4/4"))).opening.num_bars == 11


def test_whole_piece_models_are_refused():
    with pytest.raises(ValueError, match="trained on whole pieces"):
        Composer(None, Encoding(bars=0), 64)


# A bar of 4/4 and one of 5/4.
SONG = Score((Track([(0, 4, 60, 90), (16, 20, 62, 90)], 0),), 4, (TimeSignature(0, 4, 4), TimeSignature(16, 5, 4)))
LABELS = (("GENRE", ("JAZZ", "ROCK")), ("MOOD", ("HAPPY", "SAD")))
EVERYTHING = Encoding(
    bars=4,
    meters=("all",),
    velocity=True,
    tempo=True,
    density=3,
    density_bins=(2, 8),
    bar_density=2,
    bar_density_bins=(3,),
    labels=LABELS,
    infill=True,
)


class Recorder(Composer):
    """A composer of random music that keeps the documents it wrote."""

    def __init__(self, encoding: Encoding):
        super().__init__(None, encoding, 2000, next_logits=RandomModel)
        self.documents: list[list[int]] = []

    def _write(self, *arguments) -> list[list[int]]:
        written = super()._write(*arguments)
        self.documents += written
        return written


def test_a_meter_a_tempo_and_labels():
    recorder = Recorder(EVERYTHING)
    score, other = recorder.compose([0, 1], 9, ["0", "DRUMS"], meter="6/8", tempo=96, labels=["mood=sad", "GENRE=JAZZ"])
    assert score.time_signatures == (TimeSignature(0, 6, 8),) and score.num_bars == 9 and score.length_steps == 108
    ((_, tempo),) = score.tempos
    assert tempo == pytest.approx(96, rel=0.04) and len({note.velocity for note in score.tracks[0]}) > 1
    assert score.tracks != other.tracks and len(recorder.documents) == 12
    head = [v.PIECE_START, v.IDS["GENRE=0"], v.IDS["RESERVED=1"]]
    assert all(document[:3] == head and document[3] >= v.TEMPO for document in recorder.documents)


def test_what_the_model_chooses_stays():
    """Labels of the first window are said of the next ones, and bars go on from where they were."""
    recorder = Recorder(EVERYTHING)
    scores = recorder.compose([1, 2, 3, 8, 17, 36], 11)  # three of which choose labels
    assert all(score.num_bars == 11 for score in scores)
    assert len({score.time_signatures for score in scores}) > 1
    first, later = recorder.documents[:6], recorder.documents[6:]
    chosen = {tuple(i for i in document if i in EVERYTHING.label_ids.values()) for document in first}
    assert len(chosen) > 1
    for number, document in enumerate(later):
        known = [i for i in first[number % 6] if i in EVERYTHING.label_ids.values()]
        assert [i for i in document if i in EVERYTHING.label_ids.values()] == known
    for score in scores:  # meters and tempos change on bar lines only, and never to what they are
        for events in (score.time_signatures, score.tempos):
            assert all(event.start_step in score.bar_starts for event in events)
            assert all(one[1:] != other[1:] for one, other in itertools.pairwise(events))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_continuation_in_other_meters(window):
    encoding = Encoding(bars=window, meters=("3/4", "5/8", "4/4"), tempo=True, velocity=True)
    signatures = (TimeSignature(0, 4, 4), TimeSignature(32, 5, 8), TimeSignature(62, 3, 4))
    read = Score(tiny_score(6).tracks[:2], 4, signatures, (Tempo(0, 60.0), Tempo(64, 90.0)))
    given = Continuation(read, encoding).opening
    assert given.num_bars == 8 and len(given.time_signatures) == 3 and len(given.tempos) == 2
    for score in Recorder(encoding).continue_scores([given, given], 5, [1, 2]):
        assert score.num_bars == 13 and score.time_signatures[:3] == given.time_signatures
        assert slice_steps(score, 0, given.length_steps) == given


class Holding:
    """``NextLogits`` that want each bar to rest for a quarter, end the note of the bar before there, strike one and
    hold it.
    """

    def __init__(self, model, batch_size: int, max_tokens: int):
        self.table = torch.zeros((v.SIZE, v.SIZE))
        self.table[v.BAR_START, v.TIME_DELTA + 4] = 10
        self.table[v.TIME_DELTA + 4, v.NOTE_OFF + 60] = 20
        self.table[[v.TIME_DELTA + 4, v.NOTE_OFF + 60], v.NOTE_ON + 60] = 10
        self.table[[v.NOTE_ON + 60, v.NOTE_OFF + 60], v.BAR_END] = 9
        self.table[v.NOTE_ON + 60, v.TIME_DELTA + 12] = 8

    def __call__(self, ids_BS):
        return self.table[ids_BS[:, -1]]

    def keep(self, rows):
        pass


@pytest.mark.parametrize("window", [3, 4, 7])
def test_notes_are_held_over_every_bar_line_of_a_long_piece(window):
    composer = Composer(None, Encoding(bars=window), 400, Sampler(temperature=0), next_logits=Holding)
    held = [(16 * bar + 4, 16 * bar + 20) for bar in range(14)]
    held[-1] = (212, 224)
    for score in composer.compose([0, 1], 14, ["0", "1"]):
        for track in score.tracks:
            assert [tuple(note)[:2] for note in track] == held and score.num_bars == 14
    given = Score((Track([(0, 16, 60, 80)] + [(16 * bar, 16 * bar + 16, 50, 80) for bar in range(1, 3)]),), 4)
    (score,) = composer.continue_scores([given], 11, [0])
    assert [tuple(note)[:2] for note in score.tracks[0]][3:] == held[3:]


def test_a_long_piece_whose_notes_end_with_the_bar_is_written_with_no_more_windows():
    recorder = Recorder(Encoding(bars=4, bar_line="clip"))
    recorder.compose([0], 10, ["0"])
    assert len(recorder.documents) == 4


def test_a_note_is_not_lost_or_doubled_where_windows_meet():
    """What one window leaves on, the next one ends: a pitch never sounds twice at a time."""
    composer = Composer(None, Encoding(bars=4), 700, next_logits=RandomModel)
    for score in composer.compose(range(4), 13, ["0", "1"]):
        assert score.num_bars == 13 and score.last_end_step <= score.length_steps
        for track in score.tracks:
            for pitch in set(track.notes[:, 2].tolist()):
                one = track.notes[track.notes[:, 2] == pitch]
                assert (one[1:, 0] >= one[:-1, 1]).all() and (one[:, 1] > one[:, 0]).all()
        again = decode_piece(encode_piece(score))
        assert again.tracks == score.tracks


def test_notes_held_into_a_window_fit_its_budget_of_tokens():
    recorder = Recorder(Encoding(bars=4))
    recorder.max_tokens = 130
    recorder.compose(range(6), 12, ["0", "1"])
    assert max(map(len, recorder.documents)) <= 130 and any(len(document) > 110 for document in recorder.documents)


def densities_of(document: list[int]) -> list[list[int]]:
    """The levels of each track: its own, then its bars'."""
    tracks = np.split(document, np.flatnonzero(np.array(document) == v.TRACK_START))[1:]
    return [[i - v.DENSITY for i in track.tolist() if v.DENSITY <= i < v.DENSITY + v.NUM_DENSITIES] for track in tracks]


def test_densities():
    recorder = Recorder(EVERYTHING)
    recorder.compose([0, 1], 9, ["0", "DRUMS"], meter="4/4", density=[2, 0], bar_density=1)
    assert len(recorder.documents) == 12
    # Given bars say what they said in the window before, which is the level that was asked for unless they are cut.
    for document in recorder.documents[:2]:
        assert densities_of(document) == [[2, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    for document in recorder.documents[2:]:
        assert [levels[0] for levels in densities_of(document)] == [2, 0]
        assert all(levels[-2:] == [1, 1] for levels in densities_of(document))
    recorder.documents.clear()
    recorder.compose([0], density=[1])
    assert {levels[0] for levels in densities_of(recorder.documents[0])} == {1}


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"density": [3]}, "--density 3 is none of the model's levels; use 0 .few notes. to 2 .many."),
        ({"bar_density": -1}, "--bar-density -1 is none of the model's levels; use 0 .few notes. to 1 .many."),
        ({"density": [0, 1]}, "2 densities for instruments that are the model's choice; give one for all"),
        (
            {"density": [0, 1], "instruments": ["0", "1", "2"]},
            "2 densities for 3 instruments; give one for all, or one for each",
        ),
    ],
)
def test_densities_that_cannot_be(wish, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recorder(EVERYTHING).compose([0], **wish)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"density": [1]}, "has no densities; train it on data built with --density"),
        ({"bar_density": 1}, "train it on data built with --bar-density"),
        ({"meter": "3/4"}, "writes only 4/4, not 3/4; train it on data built with --meters"),
        ({"tempo": 90}, "writes no tempo; train it on data built with --tempo"),
        ({"labels": ["GENRE=JAZZ"]}, "has no labels, so not GENRE=JAZZ; train it on data built with --labels"),
    ],
)
def test_wishes_a_model_does_not_know(wish, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recorder(Encoding()).compose([0], **wish)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"meter": "7/8"}, "does not know the meter 7/8; use one of 3/4, 4/4"),
        ({"meter": "waltz"}, "does not know the meter waltz"),
        ({"tempo": 900}, "the tempo is 900; use 30 to 240"),
        ({"tempo": float("nan")}, "the tempo is nan"),
        (
            {"labels": ["GENRE=POLKA"]},
            "does not know the label GENRE=POLKA; use one of GENRE=JAZZ, GENRE=ROCK, MOOD=HAPPY",
        ),
        ({"labels": ["GENRE=JAZZ", "GENRE=ROCK"]}, "two labels of one kind"),
    ],
)
def test_wishes_that_cannot_be(wish, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recorder(Encoding(meters=("3/4", "4/4"), tempo=True, labels=LABELS)).compose([0], **wish)


def draw(sampler: Sampler, logits: list[float], allowed: list[bool] | None = None, count: int = 4000) -> list[float]:
    """How often each token is drawn."""
    logits_BV = np.tile(np.array(logits, np.float32), (count, 1))
    allowed_BV = np.tile(allowed or [True] * len(logits), (count, 1))
    drawn = sampler.draw(logits_BV, allowed_BV, (np.arange(count) + 0.5) / count)
    return (np.bincount(drawn, minlength=len(logits)) / count).tolist()


def test_draws_follow_the_softmax():
    logits = [0.0, 1.0, 2.0]
    assert draw(Sampler(), logits) == pytest.approx(torch.tensor(logits).softmax(0).tolist(), abs=0.001)
    assert draw(Sampler(temperature=0.5), logits) == pytest.approx(
        (torch.tensor(logits) * 2).softmax(0).tolist(), abs=0.001
    )


def test_what_is_not_allowed_is_never_drawn():
    assert draw(Sampler(temperature=5.0), [0.0, 9.0, 0.0], [True, False, True]) == pytest.approx(
        [0.5, 0, 0.5], abs=0.001
    )
    assert draw(Sampler(temperature=0), [0.0, 9.0, 1.0], [True, False, True]) == [0, 0, 1]


def test_top_k_and_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert draw(Sampler(top_k=2), logits) == pytest.approx([0.625, 0.375, 0, 0], abs=0.001)
    assert draw(Sampler(top_p=0.6), logits) == pytest.approx([0.625, 0.375, 0, 0], abs=0.001)
    assert draw(Sampler(top_k=1), logits) == draw(Sampler(top_p=0.01), logits) == [1, 0, 0, 0]


def test_draws_at_the_edges():
    logits_BV = np.array([[1.0, 3.0, 2.0, 9.0]] * 3, np.float32)
    allowed_BV = np.array([[True, True, False, False]] * 3)
    uniforms_B = np.array([0.0, 0.5, 1 - 2**-53])
    assert Sampler(temperature=1e30).draw(logits_BV, allowed_BV, uniforms_B) == [0, 1, 1]
    assert Sampler(temperature=1e-40).draw(logits_BV, allowed_BV, uniforms_B) == [1, 1, 1]
    assert Sampler(top_k=1, top_p=0.5).draw(logits_BV, allowed_BV, uniforms_B) == [1, 1, 1]


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}]
)
def test_samplers_that_cannot_be(options):
    with pytest.raises(ValueError, match="use"):
        Sampler(**options)


def test_the_command(trained, tmp_path, capsys):
    arguments = ["generate", "midi", str(trained), "-o", str(tmp_path / "new"), "--num", "3", "--batch-size", "2"]
    new = tmp_path / "new"
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "3 pieces of 4 bars" in told.out and told.err.endswith(
        f"next: megatron-music render {new} -o {new} --html {new / 'listen.html'}\n"
    )
    pieces = [quantize(read_midi(path)) for path in sorted((tmp_path / "new").glob("*.mid"))]
    assert len(pieces) == 3
    write_midi(tiny_score(3), tmp_path / "given.mid")
    arguments = [
        "generate",
        "midi",
        str(trained),
        "-o",
        str(tmp_path / "more"),
        "--bars",
        "2",
        "--continue",
        str(tmp_path / "given.mid"),
    ]
    assert main(arguments) == 0 and "1 piece of 5 bars" in capsys.readouterr().out
    given, more = (
        Score(read_midi(path).tracks, 480) for path in (tmp_path / "given.mid", tmp_path / "more" / "001.mid")
    )
    assert quantize(slice_steps(more, 0, 3 * 1920)).tracks == quantize(given).tracks


def test_the_command_leaves_a_song_as_it_is(trained, tmp_path, capsys):
    """Continued and filled, more than one of each: the events of the file are in the files that are written."""
    song = tmp_path / "song.mid"
    song.write_bytes(SONGS[1])
    for number, options in enumerate(
        (["--continue", str(song), "--bars", "2"], ["--infill", "bar 5", "--from", str(song)])
    ):
        folder = tmp_path / str(number)
        assert main(["generate", "midi", str(trained), "-o", str(folder), "--num", "2", *options]) == 0
        assert f"2 pieces of {8 if number == 0 else 6} bars" in capsys.readouterr().out
        for path in sorted(folder.glob("*.mid")):
            for old, new in zip(events_of(SONGS[1]), events_of(path.read_bytes()), strict=True):
                lost = [(tick, message) for tick, message in old if (tick, message) not in new]
                assert not lost if number == 0 else all(message[0] >> 4 in (8, 9) for _, message in lost)
    waltz = tmp_path / "waltz.mid"
    write_midi(Score(tiny_score(6).tracks, 4, (TimeSignature(0, 3, 4),)), waltz)
    assert main(["generate", "midi", str(trained), "-o", str(tmp_path / "none"), "--continue", str(waltz)]) == 2
    assert "the piece ends in 3/4 (bar 8), which the model has no token for; it has 4/4" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_command_that_fills_bars(trained, tmp_path, capsys):
    write_midi(tiny_score(6), tmp_path / "given.mid")
    fill = ["generate", "midi", str(trained), "--num", "2", "--from", str(tmp_path / "given.mid"), "--infill"]
    assert main([*fill, "track 2 bars 3-4; track 1 bar 6", "-o", str(tmp_path / "filled")]) == 0
    assert "2 pieces of 6 bars" in capsys.readouterr().out
    given, *filled = (
        read_midi(path) for path in (tmp_path / "given.mid", *sorted((tmp_path / "filled").glob("*.mid")))
    )
    assert len(filled) == 2 and filled[0] != filled[1]
    for score in filled:
        assert score.tracks[2:] == given.tracks[2:]
        for number, (first, after) in ((0, (5, 6)), (1, (2, 4))):
            kept = [note for note in score.tracks[number] if not first <= note.start_step // 1920 < after]
            assert kept == [note for note in given.tracks[number] if not first <= note.start_step // 1920 < after]
    wish = ["generate", "midi", str(trained), "-o", str(tmp_path / "none"), "--density", "1,2"]
    assert main(wish) == 2 and "train it on data built with --density" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*wish[:-1], "many"])
    assert "--density: 'many' is no level; use whole numbers from 0" in capsys.readouterr().err
    assert main([*fill, "track 9 bar 1", "-o", str(tmp_path / "none")]) == 2
    assert "track 9 is not in the piece; its tracks are 1 Soprano, 2 Alto" in capsys.readouterr().err


def test_the_pieces_that_are_missing_are_written_by_the_same_command(trained, tmp_path, capsys):
    words = ["generate", "midi", str(trained), "--num", "5", "--batch-size", "2", "--bars", "5", "-o"]
    assert main([*words, str(tmp_path / "calm")]) == main([*words, str(tmp_path / "out")]) == 0
    calm = {path.name: path.read_bytes() for path in (tmp_path / "calm").iterdir()}
    assert len(calm) == 6
    for name in ("002.mid", "005.mid"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / ".002.mid.0123456789abcdef.tmp").write_bytes(b"of a command that was killed")
    (tmp_path / "out" / ".notes.0123456789abcdef.tmp").write_bytes(b"of somebody else")
    kept = tmp_path / "out" / "003.mid"
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert main([*words, str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [piece["seed"] for piece in told["pieces"]] == [0, 1, 2, 3, 4] and {
        piece["bars"] for piece in told["pieces"]
    } == {5}
    (tmp_path / "out" / ".notes.0123456789abcdef.tmp").unlink()
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
    } == calm and kept.stat().st_mtime_ns == before
    assert main([*words, str(tmp_path / "out")]) == 0 and "already generated: 5 pieces in" in capsys.readouterr().out
    (tmp_path / "out" / "004.mid").unlink()
    for other in (["--temperature", "0.5"], ["--seed", "1"], ["--bars", "6"], ["--continue", str(kept)]):
        assert main([*words, str(tmp_path / "out"), *other]) == 2
        assert "holds files made with" in (said := capsys.readouterr().err) and "null" not in said
    assert not (tmp_path / "out" / "004.mid").exists()
    assert main([*words, str(tmp_path / "out"), "--num", "7"]) == 0, "more pieces of the same settings"
    assert (
        len(list((tmp_path / "out").glob("*.mid"))) == 7
        and (tmp_path / "out" / "004.mid").read_bytes() == calm["004.mid"]
    )


def test_pieces_of_another_checkpoint_are_not_gone_on_with(trained, tmp_path, capsys):
    words = ["generate", "midi", "--num", "2", "-o", str(tmp_path / "out")]
    assert main([*words, str(trained)]) == 0
    (tmp_path / "out" / "002.mid").unlink()
    record = json.loads((tmp_path / "out" / "made-with.json").read_text())
    record["settings"]["checkpoint_sha256"] = "0" * 64
    (tmp_path / "out" / "made-with.json").write_text(json.dumps(record))
    assert main([*words, str(trained)]) == 2
    assert "made with checkpoint_sha256" in capsys.readouterr().err and not (tmp_path / "out" / "002.mid").exists()
    (tmp_path / "out" / "made-with.json").write_text("[1]")
    assert (
        main([*words, str(trained)]) == 2
        and "does not tell what the files beside it are made with" in capsys.readouterr().err
    )


def test_a_piece_that_cannot_be_written_costs_that_piece():
    composer = Composer(None, Encoding(bars=2), 60, next_logits=RandomModel)
    failed: dict[int, str] = {}
    scores = composer.compose(range(40), 9, on_failure=failed.__setitem__)
    assert failed and len(failed) < 40 and all("too many notes or tracks" in reason for reason in failed.values())
    assert [number for number, score in enumerate(scores) if score is None] == sorted(failed)
    good = [number for number, score in enumerate(scores) if score is not None]
    assert [scores[number] for number in good] == composer.compose(good, 9)
    with pytest.raises(ValueError, match="too many notes or tracks"):
        composer.compose(range(40), 9)


def test_the_command_leaves_out_what_cannot_be_written_and_does_not_try_it_again(tmp_path, capsys):
    composer = Composer(None, Encoding(bars=2), 60, next_logits=RandomModel, made_with={"checkpoint": "random"})
    options = build_parser().parse_args(
        ["generate", "midi", "random", "-o", str(tmp_path), "--num", "40", "--bars", "9", "--json"]
    )
    names = [f"{number:03}.mid" for number in range(1, 41)]
    for attempt in range(2):
        with output_folder(tmp_path, "generate midi", names, {"seed": 0}) as output:
            missing = output.missing(composer.made_with)
            bars = _write_pieces(options, composer, None, None, output, missing, speaks=True)
            _report(options, output, missing, bars)
        told = capsys.readouterr()
        found = json.loads(told.out)
        assert len(found["left_out"]) + len(found["pieces"]) == 40 and found["left_out"] and found["pieces"]
        assert told.err.count("left out: ") == len(found["left_out"]) and "too many notes or tracks" in told.err
        assert sorted(str(path) for path in tmp_path.glob("*.mid")) == [piece["file"] for piece in found["pieces"]]
        assert len(missing) == (0 if attempt else 40)


def test_nothing_is_written_over(tmp_path, capsys):
    (tmp_path / "002.mid").write_bytes(b"somebody's music")
    assert main(["generate", "midi", str(tmp_path), "-o", str(tmp_path), "--num", "3"]) == 2
    assert "002.mid is there already" in capsys.readouterr().err
    assert (tmp_path / "002.mid").read_bytes() == b"somebody's music"


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert main(["generate", "midi", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_silent_tracks_stay_in_a_continuation():
    score = Score((Track(tiny_score(4).tracks[0].notes), Track(tiny_score(1).tracks[1].notes)), 4)
    assert encode_piece(slice_steps(score, 32, 64)).tolist().count(v.TRACK_START) == 2


@pytest.fixture
def tokenizer_alone(tmp_path) -> Path:
    """A run of which only the tokenizer can be read: whoever reads a tensor of it says that it is damaged."""
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "iter_0000005"
    write_tokenizer_folder(
        checkpoint / "tokenizer",
        Encoding(meters=("3/4", "4/4"), tempo=True, density=3, density_bins=(2, 5), labels=LABELS),
    )
    (run / "latest").write_text("iter_0000005\n")
    write_midi(SONG, tmp_path / "song.mid")
    return run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--tempo 900", "the tempo is 900"),
        ("--meter 7/8", "does not know the meter 7/8"),
        ("--density 9", "--density 9 is none of the model's levels"),
        ("--density 0,1 --instruments piano", "2 densities for 1 instrument"),
        ("--bar-density 1", "train it on data built with --bar-density"),
        ("--label GENRE=POLKA", "does not know the label GENRE=POLKA"),
        ("--instruments kazoo", "kazoo"),
        ("--infill bar=1 --from SONG", "bar=1"),
        ("--infill 'bar 1' --from SONG", "has not learned to fill bars"),
        ("--continue SONG --tempo 100", "--tempo does not go with --continue"),
        ("--continue SONG", "the piece ends in 5/4 (bar 2), which the model has no token for; it has 3/4 or 4/4"),
    ],
)
def test_what_a_model_does_not_know_is_refused_before_it_is_loaded(tokenizer_alone, tmp_path, capsys, words, sentence):
    command = ["generate", "midi", str(tokenizer_alone), "-o", str(tmp_path / "new")]
    assert main([*command, *shlex.split(words.replace("SONG", str(tmp_path / "song.mid")))]) == 2
    assert sentence in capsys.readouterr().err
    assert main(command) == 2, "without the wish it is the checkpoint that is refused"
    assert sentence not in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_bars_that_a_piece_does_not_have_are_refused_before_the_model_is_loaded(tokenizer_alone, tmp_path, capsys):
    shutil.rmtree(tokenizer_alone / "iter_0000005" / "tokenizer")
    write_tokenizer_folder(tokenizer_alone / "iter_0000005" / "tokenizer", Encoding(meters=("4/4", "5/4"), infill=True))
    command = [
        "generate",
        "midi",
        str(tokenizer_alone),
        "-o",
        str(tmp_path / "new"),
        "--from",
        str(tmp_path / "song.mid"),
    ]
    assert main([*command, "--infill", "bar 9"]) == 2
    assert "bar 9 is not in the piece; it has 2 bars" in capsys.readouterr().err
    assert main([*command, "--infill", "bar 2"]) == 2
    assert "is not in the piece" not in capsys.readouterr().err
