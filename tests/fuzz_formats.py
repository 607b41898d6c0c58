"""Every format that is read: how a good one is made, which of its files are altered, and the reader that a command
really calls.

A reader takes the folder and the altered file. What it raises is judged in ``fuzz_worker``. Imports stand in the
functions, so that a worker that reads labels has no torch in its memory.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_mutations import SEAL, sealed


class Refused(ValueError):
    """A command ended with a sentence and a status other than 0."""


@dataclass(frozen=True)
class Format:
    """One row of the table.

    Args:
        make: writes a good folder.
        altered: patterns of its files that are altered, one at a time.
        read: what is done with the folder and the altered file.
        changes: whether reading changes the folder, so that each input has a copy of its own.
        is_whole: False where the good one is refused here too, since it names what a test machine has not.
        also_names: a pattern; a sentence that has it tells the place as well as one with the file's name.
    """

    make: Callable[[Path], object]
    altered: tuple[str, ...]
    read: Callable[[Path, Path], object]
    changes: bool = False
    is_whole: bool = True
    also_names: str = ""


def command(*words: str | Path, reports: bool = False) -> str:
    """Run one command as the terminal does; returns what it printed.

    Args:
        reports: it prints what it found, and ends with 1 or 2 where that is bad.

    Raises:
        Refused: it ended with one sentence.
        AssertionError: it printed what a terminal would act on.
    """
    from megatron_music.cli.entry import main

    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            status = main([*map(str, words)])
        except SystemExit as error:
            status = error.code
    acted_on = {letter for letter in said.getvalue() if not (letter.isprintable() or letter == "\n")}
    assert not acted_on, f"`{' '.join(map(str, words))}` prints {acted_on}"
    if (complained.getvalue().startswith("megatron-music: ") and status) or (status and not reports):
        raise Refused(complained.getvalue().removeprefix("megatron-music: ").removesuffix("\n"))
    return said.getvalue()


# Music and tokens.


def _make_midi(folder: Path) -> None:
    from tiny import tiny_score

    from megatron_music.music.midi import write_midi
    from megatron_music.music.score import Note, Score, Tempo, TimeSignature, Track

    signatures = (TimeSignature(0, 3, 4), TimeSignature(36, 6, 8), TimeSignature(72, 4, 4))
    notes = [Note(4 * n, 4 * n + 6 * (n % 3) + 2, 48 + 5 * n % 31, 20 + 3 * n) for n in range(34)]
    drums = Track([Note(2 * n, 2 * n + 1, 36 + n % 9, 90) for n in range(60)], is_drum=True)
    write_midi(tiny_score(6), folder / "voices.mid")
    write_midi(Score((Track(notes, 33), drums), 4, signatures, (Tempo(0, 90.0), Tempo(40, 180.0))), folder / "band.mid")


def _read_midi(folder: Path, path: Path) -> None:
    """As ``build tokens`` reads it, which never raises; as ``tokenize``, ``plot`` and ``render`` do; with all its
    events.
    """
    from megatron_music.data.build_options import BuildOptions
    from megatron_music.data.encode import encode_content
    from megatron_music.music.midi import read_midi
    from megatron_music.music.midi_events import read_events
    from megatron_music.tokens.encoding import Encoding

    encode_content(
        path.read_bytes(),
        BuildOptions(Encoding(bars=2, meters=("all",), velocity=True, tempo=True), seconds_per_file=10),
        (),
    )
    read_events(path)
    read_midi(path)


def _make_tokens(folder: Path) -> None:
    from tiny import tiny_score

    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.encoding import Encoding
    from megatron_music.tokens.mmmtrack import encode_piece
    from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder

    write_tokenizer_folder(folder / "tokenizer", Encoding())
    ids = encode_piece(tiny_score(2), Encoding(bars=2))
    (folder / "tokens.txt").write_text(" ".join(vocabulary.TOKENS[i] for i in ids) + "\n")


def _read_tokens(folder: Path, path: Path) -> None:
    command("detokenize", path, "-o", folder / "out.mid")
    command("detokenize", path, "-o", folder / "out.mid", "--tokenizer", folder / "tokenizer")


def _make_tokenizer(folder: Path) -> None:
    from tiny import tiny_score

    from megatron_music.tokens.bpe import learn_bpe
    from megatron_music.tokens.encoding import Encoding
    from megatron_music.tokens.mmmtrack import encode_piece
    from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder

    bpe = learn_bpe([encode_piece(tiny_score(bars), Encoding(bars=bars)) for bars in (2, 3, 4, 4)], 128)
    labels = (("GENRE", ("JAZZ", "ROCK")),)
    write_tokenizer_folder(
        folder, Encoding(velocity=True, density=3, density_bins=(4, 9), labels=labels, bpe=bpe.size), bpe
    )


def _read_tokenizer(folder: Path, path: Path) -> None:
    from megatron_music.tokens.lexicon import read_wording

    encoding, bpe, wording = read_wording(folder)
    encoding.density_levels("density"), encoding.tokens, encoding.meter_set, wording.ids
    if bpe:
        bpe.decode(np.arange(encoding.vocab_size, dtype=np.uint16))


# Datasets of tokens.


def _make_dataset(folder: Path) -> None:
    from tiny_report import tiny_dataset

    from megatron_music.data.index_file import read_lengths

    tiny_dataset(
        folder, quarantine=(("/music/a.mid", "the file is empty"), ("/music/b.zip!c.mid", "the file has no notes"))
    )
    report = json.loads((folder / "report.json").read_text())
    for split, row in report["splits"].items():  # the figures of a larger dataset; counts are those of the files
        lengths = read_lengths(folder / split) if (folder / f"{split}.idx").exists() else np.empty(0, np.int32)
        row["documents"], row["tokens"], row["bytes"] = len(lengths), int(lengths.sum()), 2 * int(lengths.sum())
    (folder / "report.json").write_text(json.dumps(report))


def _read_index(folder: Path, path: Path) -> None:
    from megatron_music.data.index_file import check_ids
    from megatron_music.data.page import write_page
    from megatron_music.tokens.tokenizer_folder import read_encoding

    check_ids(folder / "train", read_encoding(folder / "tokenizer").vocab_size, whole=True)
    write_page(folder, folder / "page.html")


def _read_report(folder: Path, path: Path) -> None:
    command("inspect", folder, "--html", folder / "page.html")


def _make_building(folder: Path) -> None:
    from tiny import tiny_score
    from tiny_shards import TinyFile, write_shards

    from megatron_music.data.build_options import BuildOptions
    from megatron_music.tokens.encoding import Encoding
    from megatron_music.tokens.mmmtrack import encode_piece

    documents = [encode_piece(tiny_score(bars), Encoding(bars=bars)).tolist() for bars in (1, 2, 3)]
    files = [
        TinyFile([documents[:1]]),
        TinyFile([documents[1:]], source=0),
        TinyFile(damage="the file is empty"),
        TinyFile([documents], content="ab" * 16),
    ]
    write_shards(folder / "out", files, BuildOptions(Encoding(bars=1)))


def _read_building(folder: Path, path: Path) -> None:
    """As ``build merge`` does, of parts whose record fits: who writes the one can write the other."""
    if path.suffix in (".bin", ".lengths"):
        record = path.with_suffix(".json")
        content, content_of_part = record.read_bytes(), path.read_bytes()
        seal = SEAL.match(content)
        facts = json.loads(b"{" + content[seal.end() :] if seal else content)
        facts[path.suffix[1:]] = {"sha256": hashlib.sha256(content_of_part).hexdigest(), "bytes": len(content_of_part)}
        text = json.dumps(facts).encode()
        record.write_bytes(sealed(text) if seal else text)
    command("build", "merge", folder / "out")


def _make_lists(folder: Path) -> None:
    (folder / "a").mkdir()
    for name in ("song.mid", "other song.mid", "third.midi"):
        (folder / "a" / name).write_bytes(b"MThd")
    (folder / "labels.csv").write_text(
        'path,GENRE,STYLE\na/song.mid,JAZZ,slow\nother song.mid,ROCK,\n"third.midi",JAZZ,fast\n'
    )
    (folder / "hashes.csv").write_text("md5,GENRE\n" + "0" * 32 + ",JAZZ\n" + "f" * 32 + ",ROCK\n")
    (folder / "groups.csv").write_text("path,composer\na/song.mid,train\nother song.mid,valid\nthird.midi,test\n")
    (folder / "files.lst").write_text("# songs\na/song.mid\na/other song.mid\n\na\n")
    shutil.copy(folder / "files.lst", folder / "list.txt")


def _read_lists(folder: Path, path: Path) -> None:
    from megatron_music.corpora.labels import Labels
    from megatron_music.corpora.midi_files import find_entries, find_files
    from megatron_music.data.grouping import Grouping

    if path.name == "groups.csv":
        Grouping.of(f"{path}:composer", ())
    elif path.suffix == ".csv":
        Labels.read(path).ids_for("a/song.mid", b"MThd")
    elif all(
        (folder / os.fsdecode(line.rstrip(b"\r"))).resolve().is_relative_to(folder)
        for line in set(path.read_bytes().split(b"\n"))
        if b"\0" not in line
    ):
        # A list may name any folder of its user's machine; here none but this one is searched.
        list(find_entries(find_files([folder / "list.txt"])))


def _make_archives(folder: Path) -> None:
    _make_midi(folder)
    songs = [folder / "voices.mid", folder / "band.mid"]
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")):
        with tarfile.open(folder / name, mode, format=tarfile.PAX_FORMAT) as archive:
            for number, song in enumerate(songs):
                archive.add(song, f"{'long/' * 30 * number}{song.name}")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for song in songs:
            archive.write(song, song.name)
    for song in songs:
        song.unlink()


def _read_archive(folder: Path, path: Path) -> None:
    from megatron_music.corpora.archives import Archive, EntryError
    from megatron_music.corpora.midi_files import find_entries, find_files

    entries = list(find_entries(find_files([path])))
    archive = Archive(str(path), lambda: None)
    try:
        for entry in entries[:20]:
            with contextlib.suppress(EntryError):  # that member's reason in the quarantine
                archive.read(entry)
    finally:
        archive.close()


def _make_index_cache(folder: Path) -> None:
    from tiny_gpt import tiny_dataset, tiny_run

    from megatron_music.training.loop import train

    sizes = ("model.num_layers=1", "model.hidden_size=16", "model.num_attention_heads=2", "model.seq_length=32")
    tiny_dataset(folder / "data")
    with contextlib.chdir(folder):  # the cache holds the path as it is given
        train(tiny_run("data", "checkpoint.save=run", "train.train_iters=2", "train.eval_iters=0", *sizes))
    (folder / "run" / "cache").rename(folder / "cache")
    shutil.rmtree(folder / "run")


def _read_index_cache(folder: Path, path: Path) -> None:
    """As the start of ``train`` does: what is not whole is never read, and what is whole is what megatron-core made."""
    from megatron_music.data.index_cache import Indexed, NotWhole, verify

    try:
        verify(path.parent, Indexed({"train": ["data/train"]}, 32, 1234))
    except NotWhole as error:
        raise Refused(f"{path.parent}: {error}") from None
    if path.suffix == ".npy":
        np.load(path, allow_pickle=False)


# Audio.


def _make_captions(folder: Path) -> None:
    for name in ("own-jsonl", "own-csv", "bench", "all"):
        (folder / name / "audios").mkdir(parents=True)
    rows = [{"path": f"{n:03}.wav", "captions": [f"slow bell {n}", "bell"], "group": n // 2} for n in range(4)]
    (folder / "own-jsonl" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own-csv" / "captions.csv").write_text(
        'path,caption,group\n000.wav,"slow, sad bell",a\n001.wav,fast bell,b\ncaf\u00e9.wav,organ,\n'
    )
    bench = [{"location": f"data/{n}_1.wav", "main_caption": f"a song {n}", "alt_caption": "music"} for n in range(3)]
    (folder / "bench" / "MusicBench_train.json").write_text("".join(json.dumps(row) + "\n" for row in bench))
    (folder / "all" / "id_genres.csv").write_text("id\tgenres\nx1\tjazz,blues\nx2\trock\n")
    (folder / "all" / "id_tags.csv").write_text("id\ttags\nx1\tsad\nx2\tloud,fast\n")


def _read_captions(folder: Path, path: Path) -> None:
    from megatron_music.corpora.captioned import read_captioned, with_names_on_disk

    with_names_on_disk(path.parent, read_captioned(path.parent))


def _make_audio(folder: Path) -> None:
    from megatron_music.audio.waveform import write_waveform

    sound = 0.3 * np.sin(np.arange(2 * 1200) / 9).reshape(2, 1200)
    for name, bits in (("a.wav", 16), ("b.wav", 24), ("c.flac", 16)):
        write_waveform(folder / name, sound, 16000, bits=bits, metadata={"prompt": "slow organ", "seed": 1})


def _read_audio(folder: Path, path: Path) -> None:
    """As ``build latents`` reads it, brought to a rate and two channels; as the page of ``generate audio`` does."""
    from megatron_music.audio import waveform

    waveform.read_metadata(path)
    found = waveform.read_pcm16(path)
    waveform.resampled(waveform.with_channels(found, 2), 16000)


def _make_latents(folder: Path) -> None:
    from tiny_latents import tiny_latents

    tiny_latents(folder / "data")


def _read_latents(folder: Path, path: Path) -> None:
    """As training reads them, of files whose hashes fit."""
    from megatron_music.config.sections import SPLITS
    from megatron_music.data.latents import LatentDataset

    index = folder / "data" / "index.json"
    if path != index:
        facts = json.loads(index.read_bytes())
        known = {
            f"{split}/{shard['name']}": shard for split, shards in facts["splits"].items() for shard in shards
        } | facts.get("files", {})
        name = path.relative_to(folder / "data").as_posix()
        if name in known:
            known[name] |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            index.write_text(json.dumps(facts))
    for split in SPLITS:
        data = LatentDataset(folder / "data", split)
        for number in range(min(len(data), 50)):
            item = data[number]
            [(data.text(caption), data.caption(caption)) for caption in item.captions[:20]]


def _make_encoders(folder: Path) -> None:
    from megatron_music.audio.music_encoder import fit_music_encoder
    from megatron_music.audio.oobleck import SIZES, OobleckAutoencoder, build_network
    from megatron_music.audio.spectral_autoencoder import fit_spectral_autoencoder
    from megatron_music.audio.text_encoder import fit_words

    random = np.random.default_rng(0)
    texts = ["slow organ", "fast organ", "slow flute", "fast flute"]
    fit_words(texts, random.standard_normal((4, 4)).astype(np.float32), size=16, length=6).save(folder / "text")
    fit_music_encoder(random.standard_normal((8, 5)), [[text] for text in texts * 2]).save(folder / "music")
    fit_spectral_autoencoder(
        [0.1 * random.standard_normal((2, 40_000)).astype(np.float32) for _ in range(4)], latent_channels=8
    ).save(folder / "spectral")
    OobleckAutoencoder(build_network(SIZES["tiny"])).save(folder / "oobleck")


def _read_encoders(folder: Path, path: Path) -> None:
    from megatron_music.audio.music_encoder import load_music_encoder
    from megatron_music.audio.oobleck import load_oobleck
    from megatron_music.audio.spectral_autoencoder import load_spectral_autoencoder
    from megatron_music.audio.text_encoder import load_text_encoder

    load = {
        "text": load_text_encoder,
        "music": load_music_encoder,
        "spectral": load_spectral_autoencoder,
        "oobleck": load_oobleck,
    }
    encoder = load[path.parent.name](path.parent)
    if path.parent.name == "text":
        encoder.encode(["slow organ"])
    elif path.parent.name == "music":
        encoder.embed_text(["slow organ"])


def _make_names_of_encoders(folder: Path) -> None:
    for name in ("text", "music"):
        (folder / name).mkdir()
    (folder / "text" / "hub.json").write_text(
        json.dumps({"name": "nobody/nothing", "length": 16, "revision": "abc", "sha256": "0" * 64})
    )
    (folder / "music" / "muq.json").write_text(
        json.dumps({"model": "OpenMuQ/MuQ-MuLan-large", "licence": "CC-BY-NC 4.0"})
    )


# Checkpoints.


def _make_manifest(folder: Path) -> None:
    from megatron_music.checkpoints.manifest import write_manifest

    (folder / "tokenizer").mkdir()
    for name in ("a.distcp", "state.json", "tokenizer/mmmtrack.json"):
        (folder / name).write_text(name)
    write_manifest(folder)


def _read_manifest(folder: Path, path: Path) -> None:
    from megatron_music.checkpoints.manifest import (
        read_manifest,
        what_is_wrong,
        what_was_altered,
    )

    complaint = what_is_wrong(folder) or what_was_altered(folder, read_manifest(folder))
    if complaint:
        raise Refused(f"{folder}: {complaint}")


def _make_pickled_index(folder: Path) -> None:
    import pickle

    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunks = [ChunkStorageMetadata(torch.Size([3 * n, 0]), torch.Size([3, 4])) for n in range(3)]
    tensors = {
        name: TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([9, 4]), chunks)
        for name in ("model.a", "optimizer.b")
    }
    places = {
        MetadataIndex(name, chunk.offsets, n): _StorageInfo("__0_0.distcp", 10 * n, 10)
        for name in tensors
        for n, chunk in enumerate(chunks)
    }
    (folder / "__0_0.distcp").write_bytes(bytes(100))
    (folder / ".metadata").write_bytes(
        pickle.dumps(Metadata(tensors, planner_data={"a": ("b", 1)}, storage_data=places), protocol=4)
    )


def _read_pickled_index(folder: Path, path: Path) -> None:
    from megatron_music.checkpoints.reader import IndexReader

    try:
        IndexReader(folder).read_metadata()
    except ValueError as error:  # the checkpoint's name is put in front by who loads it
        raise Refused(f"{folder}: {error}") from None


def _make_checkpoint(folder: Path) -> None:
    from tiny_gpt import tiny_dataset, tiny_run

    from megatron_music.training.loop import train

    sizes = ("model.num_layers=1", "model.hidden_size=16", "model.num_attention_heads=2", "model.seq_length=32")
    data = tiny_dataset(folder / "data")
    train(
        tiny_run(data, f"checkpoint.save={folder / 'run'}", "train.train_iters=1", "checkpoint.save_interval=1", *sizes)
    )
    shutil.rmtree(data)


def _read_checkpoint(folder: Path, path: Path) -> None:
    """As ``generate midi`` does, of a checkpoint whose manifest fits: a stranger writes that too."""
    from megatron_music.checkpoints.manifest import MANIFEST, write_manifest
    from megatron_music.generation.load_models import load_model_for_inference
    from megatron_music.tokens.lexicon import read_wording

    checkpoint = folder / "run" / "iter_0000001"
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint)
    load_model_for_inference(folder / "run")
    read_wording(checkpoint / "tokenizer")


def _make_run_folder(folder: Path) -> None:
    lines = [
        {"iteration": n, "loss": 5.0 - n / 10, "grad_norm": 1.0, "step_seconds": 0.1, "tokens_per_second": 1000.0}
        for n in range(1, 16)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "latest").write_text("iter_0000010\n")
    (folder / "starts.json").write_text('{"iteration": 10, "starts": 2}\n')
    (folder / "iter_0000010").mkdir()


def _read_run_folder(folder: Path, path: Path) -> None:
    """What a resumed run reads before it begins."""
    from megatron_music.checkpoints.folder import read_latest
    from megatron_music.training.metrics import cut_metrics
    from megatron_music.training.run_folder import _read_starts

    read_latest(folder)
    _read_starts(folder / "starts.json", 10)
    cut_metrics(folder / "metrics.jsonl", 10)


def _make_hugging_face(folder: Path) -> None:
    import torch
    import transformers

    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.encoding import Encoding
    from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder

    torch.manual_seed(0)
    sizes = {
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
        "vocab_size": vocabulary.SIZE,
        "activation_function": "gelu",
        "bos_token_id": vocabulary.PIECE_START,
        "eos_token_id": vocabulary.DOCUMENT_END,
    }
    transformers.utils.logging.disable_progress_bar()
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder / "theirs")
    write_tokenizer_folder(folder / "theirs", Encoding())
    (folder / "theirs" / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": "model.safetensors"}})
    )


def _read_hugging_face(folder: Path, path: Path) -> None:
    from megatron_music.hosts.huggingface import convert_to_megatron

    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    convert_to_megatron(folder / "theirs", out)


# Recipes, job scripts, logs and traces.


def _make_recipes(folder: Path) -> None:
    from dataclasses import asdict

    import yaml

    from megatron_music.config.load import RECIPES, load_run

    for name in ("tiny", "demo-dit"):
        shutil.copy(RECIPES / f"{name}.yaml", folder / f"{name}.yaml")
    (folder / "whole.yaml").write_text(yaml.safe_dump(asdict(load_run("tiny")), sort_keys=False))


def _read_recipe(folder: Path, path: Path) -> None:
    command("recipes", path)


def _make_job(folder: Path) -> None:
    script = """#!/usr/bin/env bash
#SBATCH --job-name=music --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=a100:8
#SBATCH --time=1-04:00:00
#SBATCH --mem=100G --cpus-per-task 4
#SBATCH --requeue --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --output=%x-%j.out
srun --kill-on-bad-exit=0 python -m megatron_music train tiny data.path=DATA checkpoint.save=RUN train.train_iters=5
"""
    (folder / "job.sbatch").write_text(script)


def _read_job(folder: Path, path: Path) -> None:
    command("preflight", path, reports=True)


def _make_logs(folder: Path) -> None:
    (folder / "run").mkdir()
    _make_run_folder(folder / "run")
    megatron = (
        " [2026-01-02 03:04:05] iteration {n:8d}/     100 | consumed samples: {n:12d} | elapsed time per iteration "
        "(ms): 1234.5 | throughput per GPU "
        "(TFLOP/s/GPU): 160.3 | learning rate: 1.000000E-04 | global batch size:    64 | lm loss: 6.400000E+00 | "
        "number of skipped iterations:   0 |"
    )
    facts = {
        "hidden_size": 64,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_query_groups": 4,
        "ffn_hidden_size": 256,
        "padded_vocab_size": 768,
        "seq_length": 64,
        "swiglu": False,
        "world_size": 8,
        "global_batch_size": 64,
        "recompute_granularity": None,
        "bf16": True,
    }
    head = "0: ------------------------ arguments ------------------------\n" + "".join(
        f"0:   {name} {'.' * (48 - len(name))} {value}\n" for name, value in facts.items()
    )
    lines = "".join(f"7: {megatron.format(n=n)}\n" for n in range(1, 31))
    (folder / "megatron.log").write_text(
        head + "0: -------------------- end of arguments ---------------------\n" + lines
    )
    nemo = (
        "Epoch 0: : {n}%|x| {n}/100 [00:01<00:02, reduced_train_loss=6.4, global_batch_size=64, global_step={n}.000, "
        "train_step_timing in s=1.250]\r"
    )
    (folder / "nemo.log").write_text("".join(nemo.format(n=n) for n in range(1, 31)))


def _read_log(folder: Path, path: Path) -> None:
    shape = (
        "--num-layers",
        "2",
        "--hidden-size",
        "64",
        "--num-attention-heads",
        "4",
        "--seq-length",
        "64",
        "--vocab-size",
        "768",
        "--num-gpus",
        "8",
    )
    command(
        "mfu", path, *(() if path.name == "megatron.log" else (*shape, "--global-batch-size", "64")), "--gpu", "a100"
    )


def _make_traces(folder: Path) -> None:
    import gzip

    kernels = [
        ("sm90_xmma_gemm_bf16_tn", 0, 40),
        ("ncclDevKernel_AllReduce", 30, 60),
        ("Memcpy DtoD", 80, 90),
        ("flash_fwd_kernel", 90, 100),
    ]
    ranges = [("iteration 1", 0, 60), ("forward", 0, 20), ("forward", 80, 90)]
    events = [
        {"ph": "X", "cat": "kernel", "name": name, "ts": start + 1e6, "dur": end - start, "pid": 0, "tid": 7}
        for name, start, end in kernels
    ]
    events += [
        {"ph": "X", "cat": "user_annotation", "name": name, "ts": start + 1e6, "dur": end - start}
        for name, start, end in ranges
    ]
    operators = [
        {"ph": "X", "cat": "cpu_op", "name": f"aten::{name}", "ts": 10 * n, "dur": 15, "pid": 1, "tid": 2}
        for n, name in enumerate(("mm", "add", "mm"))
    ]
    for name, found in (("gpu.json", events), ("cpu.json", operators)):
        (folder / name).write_text(json.dumps({"traceEvents": found, "distributedInfo": {"rank": 3}}))
    (folder / "gpu.json.gz").write_bytes(gzip.compress((folder / "gpu.json").read_bytes(), mtime=0))
    base = sqlite3.connect(folder / "gpu.sqlite")
    texts = {name: number for number, name in enumerate(dict.fromkeys(row[0] for row in (*kernels, *ranges)))}
    base.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    base.execute(
        'CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, "end" INTEGER, streamId INTEGER, globalPid INTEGER, '
        "demangledName INTEGER)"
    )
    base.execute(
        'CREATE TABLE NVTX_EVENTS (start INTEGER, "end" INTEGER, eventType INTEGER, text TEXT, globalTid INTEGER, '
        "textId INTEGER)"
    )
    base.executemany("INSERT INTO StringIds VALUES (?, ?)", [(number, name) for name, number in texts.items()])
    owner = (0x1A << 48) | 4000 << 24
    base.executemany(
        "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 7, ?, ?)",
        [(1000 * start, 1000 * end, owner, texts[name]) for name, start, end in kernels],
    )
    base.executemany(
        "INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, NULL, ?, ?)",
        [(1000 * start, 1000 * end, owner, texts[name]) for name, start, end in ranges],
    )
    base.commit()
    base.close()


def _read_trace(folder: Path, path: Path) -> None:
    command("trace", path, "--html", folder / "page.html")


def _make_sweep(folder: Path) -> None:
    command("sweep", "tiny", "-o", folder / "sweep", "--vary", "train.micro_batch_size=1,2", "--plan", "--steps", "2")
    outcome = {
        "status": "measured",
        "reason": "",
        "step_seconds": [0.1, 0.11],
        "tokens_per_step": 64.0,
        "flops": 1e9,
        "formula": "x",
        "memory_gb": 1.0,
        "device": "CPU",
        "gpu": None,
        "versions": {"torch": "2"},
    }
    for name in ("000", "001"):
        (folder / "sweep" / "rows" / f"{name}.json").write_text(json.dumps(outcome))


def _read_sweep(folder: Path, path: Path) -> None:
    command("sweep", folder / "sweep", "--report", reports=True)


FORMATS = {
    "midi": Format(_make_midi, ("*.mid",), _read_midi),
    "tokens": Format(_make_tokens, ("tokens.txt",), _read_tokens, also_names=r"\b(token|bar|track|id) \d+"),
    "mmmtrack.json": Format(_make_tokenizer, ("mmmtrack.json",), _read_tokenizer),
    "bpe.json": Format(_make_tokenizer, ("bpe.json",), _read_tokenizer),
    "idx": Format(_make_dataset, ("train.idx", "train.bin"), _read_index),
    "index cache": Format(_make_index_cache, ("cache/*/*",), _read_index_cache),
    "report": Format(_make_dataset, ("report.json", "quarantine.jsonl"), _read_report),
    "plan": Format(
        _make_building, ("out.building/plan.json", "out.building/entries.jsonl"), _read_building, changes=True
    ),
    "shard record": Format(_make_building, ("out.building/shards/*",), _read_building, changes=True),
    "lists": Format(_make_lists, ("*.csv", "list.txt"), _read_lists),
    "archives": Format(_make_archives, ("a.*",), _read_archive),
    "captions": Format(_make_captions, ("*/captions.*", "*/*.json", "*/*.csv"), _read_captions),
    "audio": Format(_make_audio, ("*.wav", "*.flac"), _read_audio),
    "latents": Format(_make_latents, ("data/index.json", "data/texts.*", "data/train/*"), _read_latents),
    "encoders": Format(_make_encoders, ("*/*.json", "*/*.safetensors"), _read_encoders),
    "names of encoders": Format(
        _make_names_of_encoders, ("text/hub.json", "music/muq.json"), _read_encoders, is_whole=False
    ),
    "manifest": Format(_make_manifest, ("manifest.json",), _read_manifest),
    ".metadata": Format(_make_pickled_index, (".metadata",), _read_pickled_index),
    "checkpoint": Format(
        _make_checkpoint,
        ("run/iter_*/*.json", "run/iter_*/config.yaml", "run/iter_*/.metadata", "run/iter_*/*.distcp"),
        _read_checkpoint,
    ),
    "run folder": Format(_make_run_folder, ("metrics.jsonl", "latest", "starts.json"), _read_run_folder, changes=True),
    "hugging face": Format(_make_hugging_face, ("theirs/*.json", "theirs/*.safetensors"), _read_hugging_face),
    "recipes": Format(
        _make_recipes,
        ("*.yaml",),
        _read_recipe,
        also_names=r"\b(model|data|parallel|optimizer|train|checkpoint|logging|flow)\.",
    ),
    "job scripts": Format(_make_job, ("job.sbatch",), _read_job),
    "logs": Format(_make_logs, ("run/metrics.jsonl", "*.log"), _read_log, also_names="the log (does not say|has)"),
    "traces": Format(_make_traces, ("*.json", "*.gz", "*.sqlite"), _read_trace),
    "sweep": Format(_make_sweep, ("sweep/*.json", "sweep/rows/*"), _read_sweep),
}
