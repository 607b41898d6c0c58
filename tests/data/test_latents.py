"""Cached embeddings and latents: what is written is read back, and what was changed is told."""

import json
import shutil

import numpy as np
import pytest
from tiny_latents import (
    CHANNELS,
    EMBEDDING,
    FRAMES,
    INFO,
    TEXT_LENGTH,
    TEXT_SIZE,
    tiny_latents,
)

from megatron_music.cli.entry import main
from megatron_music.data import latents
from megatron_music.data.latents import (
    LatentDataset,
    LatentItem,
    check_before_training,
    verify,
    write_samples,
    write_texts,
)
from megatron_music.data.latents_index import (
    DamagedLatents,
    check_encoders,
    encoder_files,
    write_index,
)


def test_samples_are_read_back_across_shards(tmp_path):
    dataset = LatentDataset(tiny_latents(tmp_path / "data"), "train")
    assert len(dataset) == 21 and dataset.info == INFO and dataset.info.seconds == 2
    items = list(dataset)
    assert len(items) == 21
    for item in items:
        assert item.latents.shape == (8, 16) and item.latents.dtype == np.float32
        assert np.linalg.norm(item.embedding) == pytest.approx(1)
        assert item.captions[1] == 4 and 1 <= item.captions[0] <= 4
    assert not np.array_equal(items[9].latents, items[10].latents)
    states, length = dataset.text(0)
    assert states.shape == (5, 24) and length == 1 and dataset.caption(0) == "" and dataset.caption(2) == "a fast organ"
    with pytest.raises(IndexError):
        dataset[21]
    assert len(LatentDataset(tmp_path / "data", "test")) == 3


def test_arrays_that_lie_transposed_are_written_as_they_read(tmp_path):
    folder, random = tmp_path / "data", np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    latents = random.standard_normal((3, FRAMES, CHANNELS)).astype(np.float32).transpose(0, 2, 1)
    states = random.standard_normal((TEXT_SIZE, TEXT_LENGTH, 1)).astype(np.float32).T
    items = [LatentItem(each, np.ones(EMBEDDING, np.float32), (0,), 0.0, 2.0) for each in latents]
    write_texts(folder, [""], states, np.array([2]))
    shards = {"train": [write_samples(folder / "train" / "00000.safetensors", items)], "valid": [], "test": []}
    write_index(folder, INFO, shards, {})
    found = LatentDataset(folder, "train")
    assert all(np.array_equal(found[number].latents, latents[number]) for number in range(3))
    assert np.array_equal(found.text(0)[0], states[0])


def test_captions_of_each_number(tmp_path):
    captions = [(1,), (2, 3, 1), (4,)]
    items = [LatentItem(np.zeros((8, 16)), np.ones(12), numbers, 1.5, 9.0) for numbers in captions]
    tiny_latents(tmp_path / "data")
    shard = write_samples(tmp_path / "data" / "test" / "00009.safetensors", items)
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    index["splits"]["test"] = [shard]
    (tmp_path / "data" / "index.json").write_text(json.dumps(index))
    dataset = LatentDataset(tmp_path / "data", "test")
    assert [dataset[number].captions for number in range(3)] == captions
    assert dataset[1].seconds_start == 1.5 and dataset[1].seconds_total == 9
    dataset.check()


def test_what_is_damaged(tmp_path):
    folder = tiny_latents(tmp_path / "data")
    with pytest.raises(DamagedLatents, match=r"holds no index.json; make it with `megatron-music build latents"):
        LatentDataset(tmp_path, "train")
    shard = folder / "train" / "00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(DamagedLatents, match="was changed since it was written"):
        LatentDataset(folder, "train").check()
    shard.write_bytes(content[:-5])
    with pytest.raises(DamagedLatents, match="missing or has another size"):
        LatentDataset(folder, "train")
    shard.write_bytes(b"\xff" * len(content))
    with pytest.raises(DamagedLatents, match="cannot be read"):
        LatentDataset(folder, "train")[0]
    index = json.loads((folder / "index.json").read_text()) | {"format": 2}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedLatents, match="its format is 2"):
        LatentDataset(folder, "train")


def test_inspect_of_latents_says_where_their_figures_are(tmp_path, capsys):
    folder = tiny_latents(tmp_path / "latents")
    assert main(["inspect", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"{folder} is a dataset of latents" in said and str(folder / "report.json") in said
    assert "build" not in said.replace(str(folder), "")  # nothing is wrong with it


def test_every_caption_has_a_state(tmp_path):
    with pytest.raises(ValueError, match="caption 0 must be the empty one"):
        write_texts(tmp_path, ["", "a"], np.zeros((2, 3, 4)), np.array([1, 0]))
    with pytest.raises(ValueError, match="caption 0 must be the empty one"):
        write_texts(tmp_path, ["a"], np.zeros((1, 3, 4)), np.array([1]))


def changed(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "name", ["encoders/music/made-up.json", "train/00001.safetensors", "texts.safetensors", "texts.jsonl"]
)
def test_one_bit_that_changed_anywhere_is_refused_by_name_before_training(tmp_path, name):
    folder = tiny_latents(tmp_path / "data")
    assert verify(folder) == 2 + 6 + 3
    check_before_training(folder)
    changed(folder / name)
    for compare in (verify, check_before_training):
        with pytest.raises(DamagedLatents, match=r"(copy the folder|copy the dataset) again, or build") as error:
            compare(folder)
        assert str((folder / name).parent if name.startswith("encoders") else folder / name) in str(error.value)


def test_large_shards_are_compared_by_inspect_alone_and_encoders_always(tmp_path, monkeypatch):
    folder = tiny_latents(tmp_path / "data")
    changed(folder / "train" / "00001.safetensors")
    monkeypatch.setattr(latents, "CHECKED_BYTES", 100)
    check_before_training(folder)
    changed(folder / "encoders" / "text" / "made-up.json")
    with pytest.raises(DamagedLatents, match=r"encoders/text is not the encoder that .*index.json names"):
        check_before_training(folder)


def test_encoders_that_are_links_or_missing_are_refused(tmp_path):
    folder = tiny_latents(tmp_path / "data")
    (tmp_path / "secret").write_text("key")
    (folder / "encoders" / "music" / "readme.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DamagedLatents, match="encoders/music cannot be read"):
        check_encoders(folder)
    shutil.rmtree(folder / "encoders" / "music")
    with pytest.raises(DamagedLatents, match="encoders/music cannot be read"):
        check_encoders(folder)


def test_what_lies_beside_the_encoders_is_not_copied(tmp_path):
    folder = tiny_latents(tmp_path / "data")
    (folder / "encoders" / "notes").mkdir()
    (folder / "encoders" / "notes" / "key.txt").write_text("key")
    assert sorted(name for name, _ in encoder_files(folder)) == [
        f"encoders/{name}/made-up.json" for name in ("autoencoder", "music", "text")
    ]


ODD = [
    ("latent_length", "5"),
    ("latent_length", None),
    ("latent_channels", True),
    ("sample_rate", -1),
    ("channels", 2.0),
    ("text_size", 2**70),
    ("encoders", []),
    ("encoders", {"../..": {"name": "x", "sha256": "0" * 64}}),
    ("encoders", {"text": {"name": 5, "sha256": "0" * 64}}),
    ("encoders", {"text": {"name": "x", "sha256": "0"}}),
    ("splits", []),
    ("splits", {"train": {}}),
    ("splits", {"train": [5]}),
    ("splits", {"other": []}),
    ("splits", {"train": [{"name": "../00000.safetensors", "count": 1, "bytes": 1, "sha256": "0" * 64}]}),
    ("splits", {"train": [{"name": "00000.safetensors", "count": "1", "bytes": 1, "sha256": "0" * 64}]}),
    ("splits", {"train": [{"name": "00000.safetensors", "count": 1, "bytes": 1e300, "sha256": "0" * 64}]}),
    ("files", {"../x.txt": {"bytes": 1, "sha256": "0" * 64}}),
    ("files", 5),
]


@pytest.mark.parametrize(("name", "value"), ODD)
def test_an_odd_value_in_the_index_is_one_sentence(tmp_path, name, value):
    folder = tiny_latents(tmp_path / "data")
    index = json.loads((folder / "index.json").read_text()) | {name: value}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        DamagedLatents, match=r"index.json is no index of latents \(.*\); build the dataset again"
    ) as error:
        LatentDataset(folder, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("latent_length", 15), ("latent_channels", 9), ("embedding_size", 512), ("text_length", 4), ("text_size", 25)],
)
def test_an_index_of_other_shapes_than_the_shards_is_one_sentence(tmp_path, name, value):
    folder = tiny_latents(tmp_path / "data")
    index = json.loads((folder / "index.json").read_text()) | {name: value}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedLatents, match=r"safetensors cannot be read \(its tensor \w+ is"):
        LatentDataset(folder, "train")[0]
