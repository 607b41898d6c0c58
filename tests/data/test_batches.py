"""What a model is shown: which samples, and where the loss and the attention stop."""

import time
from itertools import islice

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tiny_gpt import tiny_dataset

from megatron_music.config.errors import ConfigError
from megatron_music.config.sections import DataConfig, ParallelConfig
from megatron_music.data.batches import build_datasets, micro_batches
from megatron_music.parallel import distributed
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder
from megatron_music.tokens.vocabulary import DOCUMENT_END, PAD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("batches") / "data")


@pytest.fixture
def one_process():
    # Blending asks megatron-core for this process's rank.
    distributed.start(ParallelConfig())
    yield
    distributed.stop()


def datasets(path, seq_length=64, num_samples=(40, 8, 0), **options):
    return build_datasets(DataConfig(path, **options), seq_length=seq_length, seed=1, num_samples=num_samples)


def take(dataset, count, *, consumed_samples=0, rank=0, size=1, micro_batch_size=2):
    batches = micro_batches(
        dataset,
        consumed_samples=consumed_samples,
        micro_batch_size=micro_batch_size,
        data_parallel_rank=rank,
        data_parallel_size=size,
    )
    return list(islice(batches, count))


def test_labels_are_the_next_tokens(folder):
    train, valid, test = datasets(str(folder))
    assert test is None and valid is not None
    (batch,) = take(train, 1)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "tokens": ((2, 64), torch.int64),
        "labels": ((2, 64), torch.int64),
        "position_ids": ((2, 64), torch.int64),
        "loss_mask": ((2, 64), torch.float32),
    }
    assert torch.equal(batch["tokens"][:, 1:], batch["labels"][:, :-1])
    assert batch["position_ids"].tolist() == [list(range(64))] * 2


def test_there_is_no_loss_after_a_document_end_but_on_it(folder):
    batches = take(datasets(str(folder))[0], 10)
    tokens, labels = (torch.cat([batch[key] for batch in batches]) for key in ("tokens", "labels"))
    mask = torch.cat([batch["loss_mask"] for batch in batches])
    assert (tokens == DOCUMENT_END).any() and (labels == DOCUMENT_END).any()
    assert torch.equal(mask == 0, tokens == DOCUMENT_END)
    assert mask[labels == DOCUMENT_END].all()
    unmasked = take(datasets(str(folder), eod_mask_loss=False)[0], 10)
    assert all(batch["loss_mask"].all() for batch in unmasked)


def test_there_is_no_loss_on_padding(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "train.bin"), dtype=np.uint16)
    for _ in range(20):
        builder.add_document(np.array([1, 3, 300, PAD, PAD, DOCUMENT_END], np.uint16), [6])
    builder.finalize(str(tmp_path / "train.idx"))
    write_tokenizer_folder(tmp_path / "tokenizer", Encoding())
    train, valid, _ = datasets(str(tmp_path), seq_length=12, num_samples=(4, 4, 0))
    assert valid is None
    for batch in take(train, 2):
        masked = (batch["labels"] == PAD) | (batch["tokens"] == DOCUMENT_END)
        assert torch.equal(batch["loss_mask"] == 0, masked)


def test_a_document_does_not_see_the_one_before(folder):
    train, _, _ = datasets(str(folder), reset_attention_mask=True, reset_position_ids=True)
    for batch in take(train, 5):
        assert batch["attention_mask"].shape == (2, 1, 64, 64)
        for tokens, hidden, positions in zip(
            batch["tokens"], batch["attention_mask"][:, 0], batch["position_ids"], strict=False
        ):
            # Tokens belong to the document that starts after the last DOCUMENT_END before them.
            ends = (tokens == DOCUMENT_END).int()
            document = ends.cumsum(0) - ends
            causal = torch.ones(64, 64).tril().bool()
            assert torch.equal(~hidden, causal & (document[:, None] == document[None, :]))
            assert positions.tolist() == [int((document[:place] == document[place]).sum()) for place in range(64)]


@pytest.mark.parametrize(("size", "micro_batch_size"), [(2, 2), (4, 1), (1, 8), (2, 4)])
def test_a_global_batch_does_not_depend_on_the_layout(folder, size, micro_batch_size):
    train, _, _ = datasets(str(folder))
    expected = torch.cat([batch["tokens"] for batch in take(train, 4)])
    ranks = [
        take(train, 8 // size // micro_batch_size, rank=rank, size=size, micro_batch_size=micro_batch_size)
        for rank in range(size)
    ]
    found = torch.cat([batch["tokens"] for portion in zip(*ranks, strict=False) for batch in portion])
    assert torch.equal(found, expected)


def test_a_run_goes_on_by_the_number_of_samples_it_has_seen(folder):
    train, _, _ = datasets(str(folder))
    for expected, found in zip(take(train, 5)[3:], take(train, 2, consumed_samples=6), strict=True):
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_every_training_token_is_seen_in_an_epoch(folder):
    indexed = IndexedDataset(str(folder / "train"))
    num_tokens = int(np.sum(indexed.sequence_lengths))
    num_samples = (num_tokens - 1) // 64
    train, _, _ = datasets(str(folder), num_samples=(num_samples, 0, 0))
    seen = np.concatenate([train[index]["tokens"].numpy() for index in range(num_samples)])
    whole = np.concatenate([indexed[index] for index in range(len(indexed))])
    missing = np.bincount(whole, minlength=768) - np.bincount(seen, minlength=768)
    assert missing.min() >= 0 and missing.sum() == num_tokens - 64 * num_samples


def test_folders_are_blended_by_weight(tmp_path, one_process):
    for name, token in (("a", 300), ("b", 400)):
        (tmp_path / name).mkdir()
        builder = IndexedDatasetBuilder(str(tmp_path / name / "train.bin"), dtype=np.uint16)
        for _ in range(50):
            builder.add_document(np.array([token] * 31 + [DOCUMENT_END], np.uint16), [32])
        builder.finalize(str(tmp_path / name / "train.idx"))
        write_tokenizer_folder(tmp_path / name / "tokenizer", Encoding())
    train, _, _ = datasets(
        [0.25, str(tmp_path / "a"), 0.75, str(tmp_path / "b")], seq_length=32, num_samples=(40, 0, 0)
    )
    firsts = [int((train[index]["tokens"] == 400).any()) for index in range(40)]
    assert sum(firsts) == 30


def test_bad_folders_are_refused_in_one_sentence(tmp_path, folder):
    with pytest.raises(ValueError, match=r"data.path is not set"):
        datasets(None)
    with pytest.raises(ValueError, match=r"holds no train.bin"):
        datasets(str(tmp_path / "nothing"))
    tiny_dataset(tmp_path / "fine")
    write_tokenizer_folder(tmp_path / "fine" / "tokenizer", Encoding(steps_per_quarter=12))
    with pytest.raises(ValueError, match="differ in steps a quarter"):
        datasets([1, str(folder), 1, str(tmp_path / "fine")])
    encoding = tmp_path / "fine" / "tokenizer" / "mmmtrack.json"
    encoding.write_text(encoding.read_text().replace('"vocabulary_hash": "', '"vocabulary_hash": "0'))
    with pytest.raises(ValueError, match="vocabulary"):
        datasets(str(tmp_path / "fine"))
    empty = tiny_dataset(tmp_path / "empty", documents={"train": 0, "valid": 2})
    with pytest.raises(ValueError, match="holds no tokens"):
        datasets(str(empty))


@pytest.mark.parametrize(
    ("num_samples", "field"), [((2**40, 1, 0), "train.train_iters"), ((1, 10**15, 0), "train.eval_iters")]
)
def test_more_samples_than_the_memory_can_index_are_refused_at_once(folder, num_samples, field):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"{field} x train.global_batch_size is .* GiB of memory; lower {field}"):
        datasets(str(folder), num_samples=num_samples)
    assert time.monotonic() - start < 20
