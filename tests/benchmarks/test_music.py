"""The comparison of writers, at its smallest: that each row is what its name says."""

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.generation.load_models import load_model_for_inference
from megatron_music.generation.ngram import Markov
from megatron_music.generation.sampling import UncachedGPT
from megatron_music.parallel import distributed
from megatron_music.training.loop import DONE, train

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def music():
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("music_benchmark", BENCHMARKS / "music.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    data = tiny_dataset(folder / "data")
    run = tiny_run(
        data, f"checkpoint.save={folder / 'run'}", "train.train_iters=60", "train.eval_iters=0", "model.seq_length=96"
    )
    assert train(run) == DONE
    return folder


@pytest.fixture(scope="module")
def result(music, folder) -> dict:
    files = f"--json {folder / 'music.json'} --markdown {folder / 'music.md'}"
    music.main(f"{folder / 'data'} {folder / 'run'} --num 2 --documents 6 {files}".split())
    assert (folder / "music.md").read_text().startswith("| | perplexity |")
    return json.loads((folder / "music.json").read_text())


def test_the_rows(music, folder, result):
    trained, untrained, ngram, held_out, reference = result["rows"].values()
    order = int(next(name for name in result["rows"] if name.startswith("n-gram")).split()[-1])
    # Before training every id is about as likely as any other.
    assert trained["perplexity"] < 200 < 700 < untrained["perplexity"] < 850
    assert ngram["perplexity"] < 200 and min(result["ngram_validation_perplexity"].values()) == pytest.approx(
        result["ngram_validation_perplexity"][str(order)]
    )
    documents = music.documents_of(folder / "data", "test", 6)
    markov = Markov(music.documents_of(folder / "data", "train"), order)
    total, count = markov.loss([document[:97] for document in documents])
    assert ngram["perplexity"] == pytest.approx(math.exp(total / count)) and result["test_tokens"] == count
    assert held_out["perplexity"] is None and held_out["pitch_class_distance"] > 0
    assert reference["pitch_class_distance"] == reference["duration_distance"] == 0


def test_the_loss_of_a_gpt_is_that_of_each_id_after_those_before(music, folder):
    model, _ = load_model_for_inference(folder / "run", 1)
    whole = music.documents_of(folder / "data", "test", 3)
    documents = [document[:length] for document, length in zip(whole, (9, 12, 5), strict=True)]
    total = 0.0
    for document in documents:
        logits = UncachedGPT(model)
        ids = document.tolist()
        for before, after in itertools.pairwise(ids):
            total -= float(F.log_softmax(logits(torch.tensor([[before]])), -1)[0, after])
    for batch_size in (1, 2, 8):
        found, count = music.gpt_loss(model, documents, 96, batch_size)
        assert count == sum(map(len, documents)) - 3 and found == pytest.approx(total, rel=1e-5)
    assert music.gpt_loss(model, documents, 4)[1] == 4 + 4 + 4
    distributed.stop()


def test_the_order_is_the_best_on_validation_music(music):
    train_documents = [np.array([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2, 4])] * 3
    best, perplexities = music.best_markov(train_documents, [np.array([1, 2, 3, 1, 2, 4])])
    assert best.order > 1 and perplexities[str(best.order)] == min(perplexities.values()) < perplexities["1"]
