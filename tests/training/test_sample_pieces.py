"""Pieces written at evaluations: that they are there, are measured, and change nothing in the training."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_score
from tiny_gpt import RandomModel, launch, tiny_dataset, tiny_run
from training_runs import NEVER_THE_SAME

from megatron_music.data.folders import Tokenizer
from megatron_music.generation.from_checkpoint import load_composer
from megatron_music.generation.midi import Composer
from megatron_music.generation.unconstrained import (
    grammatical_share,
    is_grammatical,
    write_unruled,
)
from megatron_music.music.grid import quantize
from megatron_music.music.midi import read_midi
from megatron_music.parallel import distributed
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.mmmtrack import encode_piece
from megatron_music.training import sample_pieces
from megatron_music.training.loop import DONE, train

WORKER = Path(__file__).parents[1] / "samples_worker.py"
MUSIC = {
    "valid_perplexity",
    "grammatical_share",
    "pitch_class_distance",
    "duration_distance",
    "self_similarity",
    "note_density",
    "polyphony",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("samples") / "data")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_music(folder: Path) -> list[dict]:
    return [{key: line[key] for key in line if key not in (*NEVER_THE_SAME, *MUSIC)} for line in lines(folder)]


def run(data: Path, folder: Path, pieces: int, *overrides: str) -> int:
    config = tiny_run(
        data,
        f"checkpoint.save={folder}",
        f"logging.sample_pieces={pieces}",
        "train.train_iters=6",
        "train.eval_interval=3",
        "model.hidden_dropout=0.1",
        "model.attention_dropout=0.1",
        *overrides,
    )
    return train(config)


@pytest.fixture(scope="module", params=["rope", "learned_absolute"])
def runs(request, data, tmp_path_factory) -> Path:
    """One run with pieces and one without."""
    folder = tmp_path_factory.mktemp("runs")
    for pieces in (0, 3):
        overrides = (f"model.position_embedding_type={request.param}", "logging.tensorboard=true")
        assert run(data, folder / str(pieces), pieces, *overrides) == DONE
    return folder


def test_the_training_is_the_same_with_pieces(runs):
    assert without_music(runs / "3") == without_music(runs / "0")
    assert not (runs / "0" / "samples").exists() and not MUSIC & set(lines(runs / "0")[-1])


def test_every_evaluation_has_its_measures(runs):
    evaluations = [line for line in lines(runs / "3") if "valid_loss" in line]
    assert len(evaluations) == 2
    for line in evaluations:
        assert line.keys() >= MUSIC and line["valid_perplexity"] == pytest.approx(np.exp(line["valid_loss"]))
        assert line["grammatical_share"] == 0  # after six steps of a random corpus
        assert 0 <= line["pitch_class_distance"] <= 1 and line["note_density"] > 0


def test_the_files_are_what_the_checkpoint_writes_from_the_same_seeds(runs):
    assert sorted(path.name for path in (runs / "3" / "samples").iterdir()) == ["iter_0000003", "iter_0000006"]
    check_files(runs / "3", "iter_0000006", 3)


def check_files(folder: Path, iteration: str, count: int) -> None:
    """The written pieces are those that one process composes from the checkpoint."""
    composer = load_composer(folder / iteration)
    pieces = composer.compose(range(count))
    distributed.stop()
    assert any(score.num_notes for score in pieces)
    for number, score in enumerate(pieces, start=1):
        path = folder / "samples" / iteration / f"{number:03}.mid"
        assert path.exists() == bool(score.num_notes)
        if score.num_notes:
            sounding = [track for track in score.tracks if len(track)]
            read = quantize(read_midi(path))
            assert [track.notes.tolist() for track in read.tracks] == [track.notes.tolist() for track in sounding]


def test_a_picture_is_in_tensorboard(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs / "3" / "tensorboard")).Reload()
    assert [picture.step for picture in board.Images("sample")] == [3, 6]
    assert board.Images("sample")[0].height > 100
    assert [event.step for event in board.Scalars("valid_perplexity")] == [3, 6]


def test_the_model_is_left_as_it_was_found(data, tmp_path, monkeypatch):
    """Losses would hide what only the next evaluation or a parallel layout shows."""
    seen = []
    take = sample_pieces.Samples.take

    def watched(self, module, *rest):
        module.decoder.layers[1].eval()  # a mixture, as nobody leaves it, must come back too
        before = {name: part.training for name, part in module.named_modules()}
        found = take(self, module, *rest)
        seen.append(before == {name: part.training for name, part in module.named_modules()})
        return found

    monkeypatch.setattr(sample_pieces.Samples, "take", watched)
    assert run(data, tmp_path / "run", 2) == DONE
    assert seen == [True, True]


def test_under_parallel_layouts(data, tmp_path):
    launch(2, WORKER, data, tmp_path)
    for name in ("tp2", "tp2_sp", "dp2", "pp2"):
        assert without_music(tmp_path / f"{name}_2") == without_music(tmp_path / f"{name}_0"), name
    for name in ("tp2", "tp2_sp", "dp2"):
        check_files(tmp_path / f"{name}_2", "iter_0000004", 2)
    assert not (tmp_path / "pp2_2" / "samples").exists()


@pytest.mark.parametrize("encoding", [{"bars": 0}, {"bpe": 8}], ids=str)
def test_where_pieces_cannot_be_one_loud_line_says_so(data, encoding, capsys, monkeypatch):
    monkeypatch.setattr(sample_pieces, "check_folders", lambda data: Tokenizer(Encoding(**encoding), None))
    config = tiny_run(data, "logging.sample_pieces=2")
    distributed.start(config.parallel)
    try:
        assert sample_pieces.Samples(config, None).take(None, 1, 1.0, None) == {}
    finally:
        distributed.stop()
    assert capsys.readouterr().err.count("NO SAMPLE PIECES: the data has whole pieces or merged tokens") == 1


def test_a_run_without_a_folder_measures_and_writes_nothing(data, capsys):
    assert train(tiny_run(data, "train.train_iters=1", "logging.sample_pieces=1")) == DONE
    assert "| valid_perplexity " in capsys.readouterr().err


# Sampling without the grammar.


def test_encoded_music_is_grammatical():
    ids = [*encode_piece(tiny_score(4)).tolist(), v.DOCUMENT_END]
    encoding = Encoding()
    assert is_grammatical(ids, encoding)
    assert not is_grammatical(ids[:-1], encoding)  # no end
    assert not is_grammatical([*ids, v.PAD], encoding)  # more than the end
    assert not is_grammatical([*ids[:4], v.NOTE_OFF + 60, *ids[4:]], encoding)
    assert not is_grammatical(ids, Encoding(bars=3)) and not is_grammatical([], encoding)
    assert grammatical_share([ids, ids[:-1], ids, ids], encoding) == 0.75


def test_what_the_grammar_let_through_it_accepts():
    composer = Composer(None, Encoding(bars=2), 200, next_logits=RandomModel)
    documents = composer._write([*map(_grammar, range(20))], range(20), 0, lambda tokens: None)
    assert grammatical_share(documents, Encoding(bars=2)) == 1
    unruled = write_unruled(range(20), RandomModel(None, 20, 200), 200)
    assert grammatical_share(unruled, Encoding(bars=2)) == 0


def _grammar(seed: int):
    from megatron_music.tokens.grammar import Grammar

    return Grammar(Encoding(bars=2), 200)


def test_unruled_documents_end_at_their_end_or_when_they_are_full():
    class Ending(RandomModel):
        def __init__(self):
            super().__init__(None, 0, 0)
            self.table[:, v.DOCUMENT_END] += 4

    documents = write_unruled(range(30), Ending(), 40)
    ended = [ids for ids in documents if ids[-1] == v.DOCUMENT_END]
    assert 0 < len(ended) < 30 and all(v.DOCUMENT_END not in ids[:-1] for ids in ended)
    assert all(len(ids) == 40 for ids in documents if ids[-1] != v.DOCUMENT_END)
    assert all(ids[0] == v.PIECE_START for ids in documents)
    assert write_unruled([7], Ending(), 40) == [documents[7]]
