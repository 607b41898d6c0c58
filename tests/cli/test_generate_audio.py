"""``generate audio``: from latents of ``build latents`` over two small runs to files, as a user does it."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_sounds import tiny_sounds

from megatron_music.audio.waveform import read_metadata, read_waveform, write_waveform
from megatron_music.cli.entry import main
from megatron_music.cli.generate_audio import _facts_of
from megatron_music.config.load import load_run
from megatron_music.data.build_latents import build_latents
from megatron_music.data.latents_options import LatentsOptions
from megatron_music.training.loop import train

SHORT = [
    "train.train_iters=8",
    "optimizer.lr=0.01",
    "optimizer.lr_warmup_iters=0",
    "train.eval_iters=0",
    "train.micro_batch_size=4",
    "train.global_batch_size=4",
    "checkpoint.save_interval=8",
    "logging.tensorboard=false",
    "model.num_layers=2",
]
SMALL = {
    "text2muq": ["model.hidden_size=64", "model.num_attention_heads=4", "model.ffn_hidden_size=64"],
    "dit": ["model.hidden_size=128", "model.num_attention_heads=2", "model.ffn_hidden_size=64"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with ``data`` and the runs ``text2muq``, ``dit``, and of dits by other objectives ``regression`` and
    ``v``.
    """
    folder = tmp_path_factory.mktemp("audio")
    options = LatentsOptions(seconds=0.512, autoencoder="tiny", autoencoder_steps=2, min_seconds=0.2)
    build_latents(tiny_sounds(folder / "sounds"), folder / "data", options)
    for name in ("text2muq", "dit", "regression", "v"):
        kind = "dit" if name in ("regression", "v") else name
        own = [f"flow.objective={name}"] if name in ("regression", "v") else []
        paths = [f"data.path={folder / 'data'}", f"checkpoint.save={folder / name}"]
        assert train(load_run(f"demo-{kind}", [*paths, *SHORT, *SMALL[kind], *own])) == 0
    return folder


def generate(runs: Path, out: Path, *options: str, stages: tuple[str, ...] = ("text2muq", "dit")) -> int:
    brief = ["--steps", "3", "--embedding-steps", "3", *([] if "--bits" in options else ["--bits", "24"])]
    return main(["generate", "audio", *(str(runs / stage) for stage in stages), "-o", str(out), *brief, *options])


def test_files_with_what_made_them(runs, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("fast bass music\n\n")
    status = generate(
        runs,
        tmp_path / "out",
        "--prompt",
        "slow bell music",
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--num",
        "2",
        "--seed",
        "7",
        "--format",
        "flac",
        "--bits",
        "24",
    )
    assert status == 0 and "4 sounds in" in capsys.readouterr().out
    names = [f"{prompt:02}-{number:03}.flac" for prompt in (1, 2) for number in (1, 2)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "made-with.json", "sounds.jsonl"]
    sound = read_waveform(tmp_path / "out" / names[1])
    assert sound.samples.shape == (2, 8192) and sound.sample_rate == 16000
    facts = read_metadata(tmp_path / "out" / names[1])
    wanted = {"prompt": "slow bell music", "sample": 1, "seed": 7, "steps": 3, "guidance_scale": 3.0, "solver": "euler"}
    assert facts.items() >= wanted.items() and len(facts["dit_sha256"]) == len(facts["text2muq_sha256"]) == 64
    lines = [json.loads(line) for line in (tmp_path / "out" / "sounds.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == names and lines[1].items() >= facts.items()


def test_a_sample_depends_on_its_prompt_seed_and_number_alone(runs, tmp_path):
    assert generate(runs, tmp_path / "a", "--prompt", "slow bell music", "--num", "3", "--batch-size", "3") == 0
    assert generate(runs, tmp_path / "b", "--prompt", "slow bell music", "--num", "3", "--batch-size", "1") == 0
    assert generate(runs, tmp_path / "again", "--prompt", "slow bell music", "--num", "3", "--batch-size", "3") == 0
    assert generate(runs, tmp_path / "other", "--prompt", "slow bell music", "--num", "1", "--seed", "1") == 0
    for name in ("01-001.wav", "01-003.wav"):
        first, alone = (read_waveform(tmp_path / run / name).samples for run in ("a", "b"))
        assert np.abs(first - alone).max() <= 1e-5
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    first, other = (read_waveform(tmp_path / run / "01-001.wav").samples for run in ("a", "other"))
    assert np.abs(first - other).max() > 5e-4


def test_what_is_missing_is_made_by_the_same_command_as_if_it_had_not_stopped(runs, tmp_path, capsys):
    words = ["--prompt", "slow bell music", "--prompt", "fast bass music", "--num", "3", "--format", "flac", "--rank"]
    assert generate(runs, tmp_path / "calm", *words, "--batch-size", "2") == 0
    assert generate(runs, tmp_path / "out", *words, "--batch-size", "2") == 0
    calm = {path.name: path.read_bytes() for path in (tmp_path / "calm").iterdir()}
    kept = tmp_path / "out" / "01-001.flac"
    for name in ("01-002.flac", "02-003.flac", "sounds.jsonl"):
        (tmp_path / "out" / name).unlink()
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    assert generate(runs, tmp_path / "out", *words) == 0, "by the batch size that the first command had"
    assert "2 sounds in" in (told := capsys.readouterr().out) and "; 4 more were there" in told
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
    } == calm and kept.stat().st_mtime_ns == before
    assert generate(runs, tmp_path / "out", *words) == 0
    assert "already generated: 6 sounds in" in capsys.readouterr().out
    for other, sentence in (
        (["--seed", "1"], "made with seed 0, not 1"),
        (["--batch-size", "3"], "made with batch_size 2, not 3"),
    ):
        assert generate(runs, tmp_path / "out", *words, *other) == 2
        assert sentence in capsys.readouterr().err
    assert generate(runs, tmp_path / "out", *words, stages=("dit",)) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == calm


def test_continuation_inpainting_and_variation(runs, tmp_path):
    given = read_waveform(runs / "sounds" / "000.wav").samples[:, :8192]
    write_waveform(tmp_path / "given.wav", given, 16000)
    base = ["--prompt", "slow bass music", "--from", str(tmp_path / "given.wav")]
    assert generate(runs, tmp_path / "kept", *base, "--keep", "0-0.3", "--seconds", "0.8") == 0
    continued = read_waveform(tmp_path / "kept" / "01-001.wav").samples
    assert continued.shape == (2, 12800)
    assert generate(runs, tmp_path / "near", *base, "--variation", "0.02") == 0
    assert generate(runs, tmp_path / "far", *base, "--variation", "1") == 0
    near, far = (read_waveform(tmp_path / name / "01-001.wav").samples for name in ("near", "far"))
    from megatron_music.audio.autoencoder import load_autoencoder

    autoencoder = load_autoencoder(runs / "data" / "encoders" / "autoencoder")
    import torch

    plain = autoencoder.decode(autoencoder.encode(torch.from_numpy(given)[None]))[0].numpy()
    # The decoder hears a few frames around each, so what is kept is the plain one's but for its end.
    assert (
        np.abs(continued[:, :2000] - plain[:, :2000]).max()
        < 1e-3
        < np.abs(continued[:, 6000:8000] - plain[:, 6000:8000]).max()
    )
    assert np.abs(near - plain).mean() < 0.3 * np.abs(far - plain).mean()


def test_interpolation_negative_prompts_and_ranking(runs, tmp_path, capsys):
    base = ["--prompt", "slow bell music", "--rank", "--num", "3"]
    assert generate(runs, tmp_path / "plain", *base) == 0
    lines = [json.loads(line) for line in (tmp_path / "plain" / "sounds.jsonl").read_text().splitlines()]
    similarities = [line["similarity"] for line in lines]
    assert similarities == sorted(similarities, reverse=True) and len(set(similarities)) > 1
    assert lines[0]["file"] in capsys.readouterr().out
    sounds = {"plain": read_waveform(tmp_path / "plain" / "01-001.wav").samples}
    for name, options in (
        ("negative", ["--negative", "fast"]),
        ("towards", ["--towards", "fast bass", "--share", "0.7"]),
        ("last", ["--last-weights"]),
        ("dopri5", ["--solver", "dopri5"]),
    ):
        assert generate(runs, tmp_path / name, "--prompt", "slow bell music", *options) == 0
        sounds[name] = read_waveform(tmp_path / name / "01-001.wav").samples
        assert np.abs(sounds[name] - sounds["plain"]).max() > 1e-6, name


def test_stage_2_alone_takes_the_embedding_of_the_words(runs, tmp_path):
    assert generate(runs, tmp_path / "out", "--prompt", "slow bell music", stages=("dit",)) == 0
    assert "text2muq_sha256" not in read_metadata(tmp_path / "out" / "01-001.wav")


def test_a_regression_gives_one_answer(runs, tmp_path):
    assert generate(runs, tmp_path / "out", "--prompt", "slow bell music", "--num", "2", stages=("regression",)) == 0
    first, second = (read_waveform(tmp_path / "out" / f"01-00{number}.wav").samples for number in (1, 2))
    assert np.abs(first - second).max() < 1e-5


def test_a_model_of_the_v_objective_is_sampled_by_its_own_solver(runs, tmp_path, capsys):
    assert generate(runs, tmp_path / "out", "--prompt", "slow bell music", stages=("text2muq", "v")) == 0
    assert read_metadata(tmp_path / "out" / "01-001.wav")["solver"] == "v-dpmsolver++"
    given = ["--from", str(runs / "sounds" / "000.wav"), "--variation", "0.5"]
    assert generate(runs, tmp_path / "no", "--prompt", "slow bell music", *given, stages=("text2muq", "v")) == 2
    assert "makes sounds from noise alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "no prompt was given"),
        (["--prompt", " "], "a prompt is empty"),
        (["--prompt", "a", "--steps", "0"], "the number of steps is 0"),
        (["--prompt", "a", "--guidance-scale", "nan"], "the guidance scale is nan"),
        (["--prompt", "a", "--guidance-scale", "loud"], "invalid float value: 'loud'"),
        (["--prompt", "a", "--solver", "magic"], "the solver is 'magic'"),
        (["--prompt", "a", "--num", "0"], "--num is 0"),
        (["--prompt", "a", "--seconds", "-1"], "the length is -1.0 seconds"),
        (["--prompt", "a", "--keep", "0-1"], "--keep goes with --from"),
        (["--prompt", "a", "--from", "x.wav"], "--from needs either --keep"),
        (["--prompt", "a", "--from", "missing.wav", "--variation", "0.5"], "missing.wav does not exist"),
        (["--prompt", "a", "--from", "x.wav", "--keep", "3-2"], "--keep 3-2 is no stretch of seconds"),
        (["--prompt", "a", "--share", "2"], "--share is 2.0"),
        (["--prompt", "word " * 10_000], "10,000 words, where this encoder reads 32; shorten it"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(runs, tmp_path, capsys, options, sentence):
    try:
        status = main(
            [
                "generate",
                "audio",
                str(runs / "text2muq"),
                str(runs / "dit"),
                "-o",
                str(tmp_path / "out"),
                "--embedding-steps",
                "2",
                *options,
            ]
        )
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err.strip()
    assert status == 2 and sentence in told and "\n" not in told
    assert not (tmp_path / "out").exists()


def test_other_checkpoints_are_refused(runs, tmp_path, capsys):
    cases = [
        (("text2muq",), "no checkpoint of a dit was named"),
        (("dit", "regression"), "is of a dit; name one run of a dit"),
        (("data", "dit"), "holds no checkpoint"),
    ]
    for stages, sentence in cases:
        assert generate(runs, tmp_path / "out", "--prompt", "a", stages=stages) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "01-001.wav").write_text("mine")
    assert generate(runs, tmp_path / "out", "--prompt", "a") == 2
    assert "is there already" in capsys.readouterr().err and (tmp_path / "out" / "01-001.wav").read_text() == "mine"


def test_the_length_is_exact_to_the_sample(runs, tmp_path):
    assert generate(runs, tmp_path / "out", "--prompt", "slow bell", "--seconds", "0.5251") == 0
    sound = read_waveform(tmp_path / "out" / "01-001.wav")
    assert sound.samples.shape[1] == round(0.5251 * 16000), "not rounded to latent frames of 256 samples"
    assert read_metadata(tmp_path / "out" / "01-001.wav")["seconds"] == sound.seconds
    given = read_waveform(runs / "sounds" / "000.wav").samples[:, :8100]
    write_waveform(tmp_path / "given.wav", given, 16000)
    varied = ["--prompt", "slow bell", "--from", str(tmp_path / "given.wav"), "--variation", "0.5"]
    assert generate(runs, tmp_path / "varied", *varied) == 0
    assert read_waveform(tmp_path / "varied" / "01-001.wav").samples.shape == given.shape


@pytest.mark.parametrize("seconds", ["1e12", "1e8"])
def test_a_length_beyond_memory_is_refused_with_the_longest_that_fits(runs, tmp_path, capsys, seconds):
    assert generate(runs, tmp_path / "out", "--prompt", "slow bell", "--seconds", seconds) == 2
    said = capsys.readouterr().err
    assert "GiB are free; use" in said and said.count("\n") == 1
    longest = float(said.split("; use ")[1].split(" s or less")[0].replace(",", ""))
    assert 10 < longest < float(seconds) and not (tmp_path / "out").exists()


def test_clipped_samples_are_counted_and_said(runs, tmp_path, capsys):
    assert generate(runs, tmp_path / "loud", "--prompt", "slow bell", "--guidance-scale", "1e5") == 0
    line = json.loads((tmp_path / "loud" / "sounds.jsonl").read_text())
    written = np.abs(read_waveform(tmp_path / "loud" / "01-001.wav").samples)
    assert line["clipped_samples"] == pytest.approx((written > 0.9999).sum(), abs=20) and line["clipped_samples"] > 1000
    assert "1 of 1 sound is too loud and was clipped" in capsys.readouterr().err
    assert generate(runs, tmp_path / "quiet", "--prompt", "slow bell") == 0
    assert "clipped" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--prompt", "ピアノ"),
        ("--prompt", "🎹"),
        ("--prompt", "slow bell", "--negative", "barabane"),
        ("--prompt", "slow bell", "--towards", "zither"),
    ],
)
def test_a_prompt_of_unknown_words_alone_is_refused(runs, tmp_path, capsys, wrong):
    assert generate(runs, tmp_path / "out", *wrong) == 2
    said = capsys.readouterr().err
    assert f"no word of the prompt {wrong[-1]!r} is known" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_words_of_a_prompt_are_named(runs, tmp_path, capsys):
    assert generate(runs, tmp_path / "out", "--prompt", "slow zither ピアノ", "--prompt", "fast bell") == 0
    said = capsys.readouterr().err
    assert (
        "does not know 3 words of the prompt 'slow zither ピアノ': zither, ピア, アノ" in said
        and said.count("does not know") == 1
    )


def test_another_file_under_the_name_of_a_sample_is_told_by_name(tmp_path):
    path, samples = tmp_path / "01-001.wav", np.zeros((2, 800), np.float32)
    for metadata in (None, {"title": "mine"}, {"prompt": 3}):
        write_waveform(path, samples, 16000, metadata=metadata)
        with pytest.raises(ValueError, match=r"01-001.wav is not the file that this command made; move it away"):
            _facts_of(path, is_ranked=False)
    write_waveform(path, samples, 16000, metadata={"prompt": "slow"})
    assert _facts_of(path, is_ranked=False) == {"prompt": "slow"}
    with pytest.raises(ValueError, match="is not the file that this command made"):
        _facts_of(path, is_ranked=True)
