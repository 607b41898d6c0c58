"""Training on merged tokens: the model is as large as its data says, from the first step to sampling."""

from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.config.errors import ConfigError
from megatron_music.config.load import read_run
from megatron_music.generation.load_models import load_model_for_inference
from megatron_music.parallel import distributed
from megatron_music.tokens import vocabulary
from megatron_music.tokens.bpe import Bpe, learn_bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import read_encoding, write_tokenizer_folder
from megatron_music.training.loop import DONE, train
from megatron_music.training.run_folder import starting_point, with_vocabulary_of_data


def merged_dataset(folder: Path, base: Path, bpe: Bpe) -> Path:
    """The documents of another dataset with their events merged."""
    for split in ("train", "valid", "test"):
        folder.mkdir(exist_ok=True)
        builder = IndexedDatasetBuilder(str(folder / f"{split}.bin"), dtype=np.uint16)
        documents = IndexedDataset(str(base / split))
        for number in range(len(documents)):
            merged, lengths = bpe.encode(documents[number], np.array([len(documents[number])]))
            builder.add_document(merged, lengths.tolist())
        builder.finalize(str(folder / f"{split}.idx"))
    write_tokenizer_folder(folder / "tokenizer", Encoding(bpe=bpe.size), bpe)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("base") / "data", documents={"train": 300, "valid": 20, "test": 20})


@pytest.fixture(scope="module")
def bpe(base):
    documents = IndexedDataset(str(base / "train"))
    return learn_bpe((documents[number] for number in range(len(documents))), 128)


@pytest.fixture(scope="module")
def data(base, bpe, tmp_path_factory):
    return merged_dataset(tmp_path_factory.mktemp("merged") / "data", base, bpe)


def test_a_model_of_merged_tokens_is_trained_goes_on_and_is_loaded(data, tmp_path):
    run = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=1")
    assert run.model.vocab_size == 768 and train(run) == DONE
    assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=2")) == DONE
    checkpoint = tmp_path / "run" / "iter_0000002"
    assert (
        read_run(checkpoint / "config.yaml").model.vocab_size
        == 896
        == read_encoding(checkpoint / "tokenizer").vocab_size
    )
    try:
        model, loaded = load_model_for_inference(tmp_path / "run")
        assert loaded.model.vocab_size == len(model.embedding.word_embeddings.weight) == 896
        assert sum(parameter.numel() for parameter in model.parameters()) == loaded.model.parameter_count
    finally:
        distributed.stop()


def test_the_size_comes_from_the_data(data, base):
    assert with_vocabulary_of_data(tiny_run(data)).model.vocab_size == 896
    assert with_vocabulary_of_data(tiny_run(data, "model.vocab_size=896")).model.vocab_size == 896
    assert with_vocabulary_of_data(tiny_run(base)).model.vocab_size == vocabulary.SIZE
    with pytest.raises(ConfigError, match=r"model.vocab_size is 1000 and that of .* is 768; omit model.vocab_size"):
        with_vocabulary_of_data(tiny_run(base, "model.vocab_size=1000"))


def test_folders_must_have_the_same_merges(data, base, bpe, tmp_path):
    other = merged_dataset(
        tmp_path / "other", base, Bpe([*bpe.merges[:-1], (vocabulary.NOTE_ON, vocabulary.TIME_DELTA + 9)])
    )
    for second in (base, other):
        with pytest.raises(ConfigError, match=r"and .* differ in merged tokens"):
            with_vocabulary_of_data(tiny_run(f"[1, {data}, 1, {second}]"))
    assert with_vocabulary_of_data(tiny_run(f"[1, {data}, 1, {data}]")).model.vocab_size == 896


def test_folders_must_have_the_same_names_of_labels(base, tmp_path):
    folders = []
    for name in ("JAZZ", "ROCK"):
        folders.append(tiny_dataset(tmp_path / name, documents={"train": 2}))
        write_tokenizer_folder(folders[-1] / "tokenizer", Encoding(labels=(("GENRE", (name,)),)))
    with pytest.raises(ConfigError, match="differ in the names of labels"):
        with_vocabulary_of_data(tiny_run(f"[1, {folders[0]}, 1, {folders[1]}]"))
    with_vocabulary_of_data(tiny_run(f"[1, {folders[0]}, 1, {base}]"))


def test_a_size_that_does_not_divide_is_refused(base, tmp_path):
    odd = merged_dataset(tmp_path / "odd", base, Bpe([(vocabulary.NOTE_ON + 60, vocabulary.TIME_DELTA + 1)]))
    assert with_vocabulary_of_data(tiny_run(odd)).model.vocab_size == 769
    with pytest.raises(
        ConfigError, match=r"the vocabulary of 769 is not divisible by parallel.tensor_model_parallel_size 2"
    ):
        with_vocabulary_of_data(tiny_run(odd, "parallel.tensor_model_parallel_size=2"))


def test_weights_of_other_merges_are_refused(data, base, bpe, tmp_path):
    assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=1")) == DONE
    other = merged_dataset(
        tmp_path / "other", base, Bpe([*bpe.merges[:-1], (vocabulary.NOTE_ON, vocabulary.TIME_DELTA + 9)])
    )
    for folder in (base, other):
        with pytest.raises(ConfigError, match="trained on 128 merged tokens that are not those of the data"):
            starting_point(with_vocabulary_of_data(tiny_run(folder, f"checkpoint.load={tmp_path / 'run'}")))
