"""Commands as a person types them, and what is said of bad input."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny import tiny_score
from tiny_latents import tiny_latents

from megatron_music.cli.dataset_options import build_options_of
from megatron_music.cli.entry import build_parser, guarded, main
from megatron_music.config.log import set_verbosity
from megatron_music.data.build import build_tokens
from megatron_music.data.build_options import DEFAULT_ENCODING, BuildOptions, Filters
from megatron_music.music.grid import quantize
from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.score import Score, TimeSignature
from megatron_music.tokens.encoding import Encoding


@pytest.fixture
def midi(tmp_path):
    write_midi(tiny_score(), tmp_path / "a.mid")
    return tmp_path / "a.mid"


@pytest.fixture
def dataset(midi, tmp_path):
    build_tokens([midi], tmp_path / "out")
    return tmp_path / "out"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def refused(capsys, *arguments) -> str:
    """The one sentence said of bad input."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and err.startswith("megatron-music: ") and err.count("\n") == 1, err
    return err


def test_tokenize_and_back(capsys, midi, tmp_path):
    status, text, err = run(capsys, "tokenize", midi)
    assert (status, err) == (0, "") and text.startswith("PIECE_START TRACK_START INST=SOPRANO BAR_START NOTE_ON=72 ")
    (tmp_path / "tokens.txt").write_text(text)
    assert run(capsys, "detokenize", tmp_path / "tokens.txt", "-o", tmp_path / "b.mid")[0] == 0
    assert quantize(read_midi(tmp_path / "b.mid")) == tiny_score()


def test_tokenize_windows(capsys, midi, tmp_path):
    _, text, _ = run(capsys, "tokenize", midi, "--bars", 2, "--hop", 1)
    assert len(text.splitlines()) == 3
    (tmp_path / "tokens.txt").write_text(text)
    assert "holds 3 pieces" in refused(capsys, "detokenize", tmp_path / "tokens.txt", "-o", tmp_path / "b.mid")
    assert run(capsys, "detokenize", tmp_path / "tokens.txt", "-o", tmp_path / "b.mid", "--piece", 3)[0] == 0
    assert quantize(read_midi(tmp_path / "b.mid")).num_bars == 2


def test_a_waltz_is_said_to_be_one(capsys, tmp_path):
    write_midi(Score(tiny_score().tracks, 4, (TimeSignature(0, 3, 4),)), tmp_path / "waltz.mid")
    status, text, err = run(capsys, "tokenize", tmp_path / "waltz.mid")
    assert status == 0 and text.startswith("PIECE_START TIME_SIGNATURE=3/4") and "so its meters are written too" in err
    status, text, err = run(capsys, "tokenize", tmp_path / "waltz.mid", "--meters", "4/4")
    assert status == 0 and "TIME_SIGNATURE" not in text and "its bars are written as if it were" in err
    assert "has no part in 4/4; --meters all takes them" in refused(
        capsys, "tokenize", tmp_path / "waltz.mid", "--bars", 4, "--meters", "4/4"
    )
    assert run(capsys, "tokenize", tmp_path / "waltz.mid", "--bars", 4)[0] == 0


def test_plot(capsys, midi, tmp_path):
    assert run(capsys, "plot", midi, "-o", tmp_path / "roll.png")[0] == 0
    assert (tmp_path / "roll.png").read_bytes().startswith(b"\x89PNG")


def test_build_and_inspect(capsys, midi, tmp_path):
    status, text, _ = run(capsys, "build", "tokens", midi.parent, "-o", tmp_path / "out", "--bars", 2)
    assert status == 0 and "1 of 1 used" in text
    status, text, _ = run(capsys, "inspect", tmp_path / "out", "--json")
    assert json.loads(text)["splits"]["train"]["documents"] == 3
    _, text, _ = run(capsys, "inspect", tmp_path / "out", "--document", 1)
    assert text.startswith("PIECE_START") and text.endswith("DOCUMENT_END\n")
    assert run(capsys, "inspect", tmp_path / "out", "--document", 0, "-o", tmp_path / "d.mid")[0] == 0
    assert quantize(read_midi(tmp_path / "d.mid")).num_bars == 2


def test_doctor(capsys):
    status, text, _ = run(capsys, "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(text)}
    assert (
        status == 0
        and findings["base"]["status"] == "ok"
        and "miditoolkit" in findings["base"]["detail"]
        and findings["python"]["status"] == "ok"
    )


def test_one_of_a_thing_is_singular(capsys, midi, tmp_path):
    out, sweep, job = tmp_path / "out", tmp_path / "sweep", tmp_path / "job.sbatch"
    job.write_text("#!/usr/bin/env bash\n#SBATCH --nodes=1\nmegatron-music train tiny\n")
    run_of_one = ["model.num_layers=1", "train.global_batch_size=1", "train.micro_batch_size=1"]
    shape = (
        "--num-layers 1 --hidden-size 64 --num-attention-heads 1 --seq-length 64 --vocab-size 768 --global-batch-size "
        "1 --num-gpus 1"
    )
    commands = [
        ["build", "tokens", midi.parent, "-o", out, "--bars", 2],
        ["inspect", out],
        ["memory", "tiny", *run_of_one],
        ["predict", "tiny", *run_of_one, "--gpu", "a100", "--search", "--top", 1],
        ["mfu", *shape.split(), "--step-time", 1, "--gpu", "a100"],
        ["sweep", "tiny", *run_of_one, "-o", sweep, "--steps", 1, "--plan"],
        ["sweep", sweep, "--report"],
        ["preflight", job],
    ]
    for command in commands:
        _, text, err = run(capsys, *command)
        assert text and not re.findall(r"(?<![\d.,:/=-])1 (?!is\b|was\b|has\b|does\b)[A-Za-z]+s\b(?!/)", text + err), (
            command,
            text,
            err,
        )


@pytest.mark.parametrize(
    ("text", "statuses", "said"),
    [
        (
            "raise OSError('libtransformer_engine.so: undefined symbol: _ZN3c10')",
            ("note", "wrong"),
            "cannot be imported: OSError: libtransformer_engine.so: undefined symbol: _ZN3c10",
        ),
        ("import os; os._exit(3)", ("note", "wrong"), "cannot be imported: ended with status 3"),
        ("print('a greeting'); __version__ = '9.8.7'", ("ok",), "9.8.7: layers use it on CUDA"),
    ],
)
def test_doctor_imports_transformer_engine_in_a_process_of_its_own(tmp_path, text, statuses, said):
    """A build for another torch may raise anything or end the process; what it prints is no version."""
    (tmp_path / "transformer_engine" / "pytorch").mkdir(parents=True)
    (tmp_path / "transformer_engine" / "__init__.py").write_text(text + "\n")
    (tmp_path / "transformer_engine" / "pytorch" / "__init__.py").touch()
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "megatron_music", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    finding = next(finding for finding in json.loads(done.stdout) if finding["name"] == "transformer-engine")
    assert finding["status"] in statuses and said in finding["detail"]


def test_recipes(capsys):
    assert "demo" in run(capsys, "recipes")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tokenize", "nowhere.mid"], "nowhere.mid cannot be read"),
        (["tokenize", "{text}"], "is no MIDI file"),
        (["tokenize", "{midi}", "--bars", "-1"], "bars is -1"),
        (["detokenize", "nowhere.txt", "-o", "x.mid"], "nowhere.txt cannot be read"),
        (["detokenize", "{midi}", "-o", "x.mid"], "cannot be read as text"),
        (["detokenize", "{text}", "-o", "x.mid"], "is 'no', which is not in the vocabulary"),
        (["plot", "nowhere.mid", "-o", "x.png"], "nowhere.mid cannot be read"),
        (["build", "tokens", "nowhere", "-o", "out"], "nowhere does not exist"),
        (["build", "tokens", "{empty}", "-o", "out"], "no MIDI files in"),
        (["build", "tokens", "{text}", "-o", "out"], "no document in 1 file"),
        (["build", "tokens", "{midi}", "-o", "out", "--split", "half"], "--split is 'half'"),
        (["build", "tokens", "{midi}", "-o", "out", "--split", "1,1,1"], "does not add up to 1"),
        (["build", "tokens", "{midi}", "-o", "out", "--workers", "0"], "workers is 0"),
        (["build", "tokens", "{midi}", "-o", "{empty}/.."], "is not empty and holds no dataset"),
        (["inspect", "{empty}"], "report.json is missing"),
        (["inspect", "{midi}"], "report.json is missing"),
        (["plot", "{midi}", "-o", "no/roll.png"], "no does not exist"),
        (["plot", "{midi}", "-o", "roll"], "does not end in .png"),
        (["plot", "{midi}", "-o", "{empty}"], "is a folder"),
        (["corpus", "bach", "-o", "."], "holds other MIDI files"),
        (["build", "tokens", "{midi}", "-o", "out", "--split", "nan,.5,.5"], "does not add up to 1"),
        (["build", "tokens", "{midi}", "-o", "out", "--copies", "2"], "ask for transpose or permute_tracks"),
        (["build", "tokens", "{midi}", "-o", "out", "--labels", "no.csv"], "no.csv cannot be read"),
        (["build", "shard", "out"], "run `megatron-music build plan` first"),
        (["build", "shard", "out", "--rank", "2", "--world-size", "2"], "rank is 2 of 2"),
        (["build", "merge", "out"], "run `megatron-music build plan` first"),
        (["train", "nosuch"], "nosuch"),
        (["train", "tiny", "train.steps=3"], "steps"),
        (["train", "tiny", "data.path={empty}"], "holds no train.bin"),
        (["generate", "midi", "{empty}", "-o", "out"], "{empty}"),
        (["generate", "midi", "{empty}", "-o", "out", "--num", "0"], "--num is 0"),
        (["generate", "midi", "{empty}", "-o", "out", "--temperature", "-1"], "temperature is -1"),
        (["generate", "midi", "{empty}", "-o", "out", "--continue", "nowhere.mid"], "nowhere.mid cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(capsys, midi, tmp_path, monkeypatch, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mid").write_text("no music")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    places = {"midi": midi, "text": tmp_path / "text.mid", "empty": tmp_path / "empty"}
    assert said.format(**places) in refused(capsys, *(argument.format(**places) for argument in arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_document_that_is_not_there(capsys, dataset):
    assert "--document 7 is not in 0..0 of train" in refused(capsys, "inspect", dataset, "--document", 7)
    assert "valid.bin is empty" in refused(capsys, "inspect", dataset, "--document", 0, "--split", "valid")
    assert "needs --document" in refused(capsys, "inspect", dataset, "-o", "x.mid")


def test_a_full_disk_is_a_failure_not_bad_input(capsys, midi, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "out")

    with monkeypatch.context() as disk:
        disk.setattr("megatron_music.data.merge.write_tokenizer_folder", full)
        status, _, err = run(capsys, "build", "tokens", midi, "-o", tmp_path / "out")
    assert status == 1 and "No space left on device (out)" in err and not (tmp_path / "out").exists()
    assert run(capsys, "build", "tokens", midi, "-o", tmp_path / "out")[0] == 0


def test_ctrl_c_keeps_what_is_finished(capsys, midi, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as hand:
        hand.setattr("megatron_music.data.merge.write_tokenizer_folder", interrupt)
        status, _, err = run(capsys, "build", "tokens", midi, "-o", tmp_path / "out")
    assert (
        status == 1 and f"what is finished is kept in {tmp_path / 'out'}.building, and the same command goes on" in err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid", "out.building"]
    assert run(capsys, "build", "tokens", midi, "-o", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid", "out"]


def test_a_build_in_parts(capsys, midi, tmp_path):
    out = tmp_path / "out"
    assert "1 file in 1 shard" in run(capsys, "build", "plan", midi, "-o", out, "--bars", 2, "--format", "both")[1]
    assert "build shard" in refused(capsys, "build", "merge", out)
    for rank in (1, 0):
        assert run(capsys, "build", "shard", out, "--rank", rank, "--world-size", 2)[0] == 0
    status, text, _ = run(capsys, "build", "merge", out, "--json")
    assert status == 0 and json.loads(text)["splits"]["train"]["documents"] == 3
    assert (
        (out / "train.txt").read_text().startswith("PIECE_START TIME_SIGNATURE=4/4 TRACK_START INST=SOPRANO BAR_START")
    )
    assert "is there already" in run(capsys, "build", "plan", midi, "-o", out, "--bars", 2, "--format", "both")[1]
    assert json.loads(run(capsys, "build", "merge", out, "--json")[1]) == json.loads(text)


def test_a_page_of_a_dataset(capsys, dataset, tmp_path):
    assert run(capsys, "inspect", dataset, "--html", tmp_path / "page.html")[0] == 0
    assert "<svg" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--copies 2 --transpose -5..6", {"copies": 2, "transpose": (-5, 6)}),
        ("--copies 2 --transpose=-5..-1", {"copies": 2, "transpose": (-5, -1)}),
        (
            "--tracks 2..8 --notes-per-bar 0.5.. --pitches ..100",
            {"filters": Filters(tracks=(2, 8), notes_per_bar=(0.5, None), pitches=(None, 100))},
        ),
        (
            "--meters 4/4,3/4 --unknown-meters 1/4 --velocity --tempo",
            {"encoding": Encoding(meters=("4/4", "3/4"), unknown_meters=("1/4",), velocity=True, tempo=True)},
        ),
        (
            "--infill 0.5 --density 5 --bar-density 3 --bpe 256",
            {"infill": 0.5, "encoding": replace(DEFAULT_ENCODING, infill=True, density=5, bar_density=3, bpe=256)},
        ),
        ("--meters 4/4 --unknown-meters none", {"encoding": Encoding()}),
        ("--unknown-meters auto,2/4", {"encoding": replace(DEFAULT_ENCODING, unknown_meters=("2/4",))}),
        ("--split-by folder", {"split_by": "folder"}),
        (
            "--format both --no-sanitize --drop-duplicates --seed 3 --split 1,0,0",
            {
                "formats": ("megatron", "text"),
                "sanitize": False,
                "drop_duplicates": True,
                "seed": 3,
                "fractions": (1, 0, 0),
            },
        ),
    ],
)
def test_what_is_typed_is_what_is_built(words, wanted):
    parsed = build_parser().parse_args(["build", "tokens", "midi", "-o", "out", *words.split()])
    assert build_options_of(parsed) == BuildOptions(**wanted)


def test_an_option_takes_one_of_its_numbers_and_refuses_others(capsys, midi):
    assert run(capsys, "tokenize", "--steps-per-quarter", "12", midi)[0] == 0
    with pytest.raises(SystemExit, match="2"):
        main(["tokenize", "--steps-per-quarter", "5", str(midi)])
    assert "choose from 4, 12" in capsys.readouterr().err


@pytest.fixture
def verbosity():
    yield
    set_verbosity()


def test_a_script_reads_the_result_of_each_command_as_json(capsys, midi, tmp_path):
    def result(*arguments) -> dict:
        status, text, _ = run(capsys, *arguments, "--json")
        assert status == 0
        return json.loads(text)

    out = tmp_path / "out"
    planned = result("build", "plan", midi, "-o", out, "--bars", 2)
    assert (planned["files"], planned["shards"], planned["already_built"]) == (1, 1, False)
    assert result("build", "shard", out) == {
        "output": str(out),
        "rank": 0,
        "world_size": 1,
        "shards": 1,
        "found": 0,
        "files": 1,
    }
    assert result("build", "merge", out)["splits"]["train"]["documents"] == 3
    assert result("build", "plan", midi, "-o", out, "--bars", 2) == {"output": str(out), "already_built": True}
    rendered = result("render", midi, "-o", tmp_path / "a.wav", "--own")
    assert [piece["file"] for piece in rendered["pieces"]] == [str(tmp_path / "a.wav")] and rendered["pieces"][0][
        "seconds"
    ] > 1
    sounds = result("corpus", "sounds", midi.parent, "-o", tmp_path / "audio", "--num", 2, "--seconds", 1, "--own")
    assert sounds == {"output": str(tmp_path / "audio"), "audio_files": 2}


def test_quiet_prints_warnings_and_answers_but_no_report(capsys, verbosity, midi, tmp_path):
    assert run(capsys, "build", "tokens", midi, "-o", tmp_path / "out", "-q") == (0, "", "")
    assert run(capsys, "-q", "render", midi, "-o", tmp_path / "a.wav", "--own") == (0, "", "")
    assert run(capsys, "plot", midi, "-o", tmp_path / "a.png", "--quiet") == (0, "", "")
    assert json.loads(run(capsys, "-q", "inspect", tmp_path / "out", "--json")[1])["files"]["used"] == 1
    write_midi(Score(tiny_score().tracks, 4, (TimeSignature(0, 3, 4),)), tmp_path / "waltz.mid")
    status, text, err = run(capsys, "tokenize", tmp_path / "waltz.mid", "--meters", "4/4", "-q")
    assert (
        status == 0
        and text.startswith("PIECE_START")
        and err.startswith("megatron-music: ")
        and "not all in 4/4" in err
    )
    assert "nowhere.mid cannot be read" in refused(capsys, "tokenize", "nowhere.mid", "-q")
    status, text, _ = run(capsys, "build", "tokens", midi, "-o", tmp_path / "out")
    assert "1 of 1 used" in text  # the next command is not quiet


def test_verbose_shows_where_an_error_came_from(capsys, verbosity):
    status, _, err = run(capsys, "-v", "tokenize", "nowhere.mid")
    assert (
        status == 2
        and "Traceback" in err
        and err.splitlines()[-1].startswith("megatron-music: nowhere.mid cannot be read")
    )


def test_settings_of_a_run_stand_before_and_after_options(capsys, verbosity):
    before, after = (
        run(capsys, "memory", "tiny", *words)[1]
        for words in (["--json", "train.bf16=true"], ["train.bf16=true", "--json"])
    )
    assert before == after
    assert run(capsys, "memory", "tiny", "train.bf16=true", "--json", "model.num_layers=4")[1] != before
    with pytest.raises(SystemExit):
        main(["tokenize", "a.mid", "--velocity", "b.mid"])
    assert "unrecognized arguments: b.mid" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train"])
    assert "required: RECIPE;" in capsys.readouterr().err


def test_an_unknown_option_is_answered_with_the_help_of_its_own_command(capsys):
    for words in (
        ["train", "tiny", "--data", "data"],
        ["build", "tokens", "midi", "-o", "out", "--bar", "4", "--nosuch"],
        ["corpus", "bach", "-o", "x", "y"],
    ):
        with pytest.raises(SystemExit):
            main(words)
        name = " ".join(words[: 2 if words[0] != "train" else 1])
        assert f"; run `megatron-music {name} --help`" in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys, monkeypatch, midi):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "megatron_music.reports.pianoroll", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.collections", None)
    assert f"needs matplotlib; run: {sys.executable} -m pip install matplotlib" in refused(
        capsys, "plot", midi, "-o", "x.png"
    )


def test_the_demo_and_the_job_scripts_come_with_the_package(capsys, tmp_path):
    assert run(capsys, "launch", "-o", tmp_path / "work")[0] == 0
    assert (tmp_path / "work" / "launch" / "train.sbatch").is_file() and (
        tmp_path / "work" / "ngc" / "Dockerfile"
    ).is_file()
    assert (tmp_path / "work" / "examples" / "music_gpt.ipynb").is_file()
    (tmp_path / "work" / "launch" / "train.sbatch").write_text("mine")
    assert "nothing is overwritten" in refused(capsys, "launch", "-o", tmp_path / "work")
    assert (tmp_path / "work" / "launch" / "train.sbatch").read_text() == "mine"


def test_a_bare_command_shows_the_help_and_the_version_is_told(capsys):
    assert run(capsys)[0] == 0
    with pytest.raises(SystemExit) as ended:
        main(["help", "render"])
    assert ended.value.code == 0 and "PAGE.html" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("megatron-music 0.")


def test_an_error_that_is_not_the_systems_does_not_ask_for_room(capsys):
    def load():
        raise OSError("libtransformer_engine.so: undefined symbol: _ZN3c10")

    assert guarded(load) == 1
    said = capsys.readouterr().err
    assert "undefined symbol" in said and "make room" not in said


def test_several_pieces_are_rendered_into_a_folder_with_a_page(capsys, midi, tmp_path):
    write_midi(tiny_score(), tmp_path / "b.mid")
    assert run(capsys, "render", tmp_path, "-o", tmp_path / "wavs", "--own", "--html", tmp_path / "page.html")[0] == 0
    assert sorted(path.name for path in (tmp_path / "wavs").iterdir()) == ["a.wav", "b.wav"]
    page = (tmp_path / "page.html").read_text()
    assert (
        page.count("<audio") == 2
        and 'aria-label="Play a.mid"' in page
        and "http" not in page.replace("http://www.w3.org", "")
    )
    assert "do not fit in one file" in refused(capsys, "render", tmp_path, "-o", tmp_path / "x.wav")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trane"], "did you mean train?"),
        (["sing"], "invalid choice: 'sing'"),
        (["build", "tokens", "midi", "-o", "out", "--tracks", "many"], "'many' is no range; write 2..8, 2.. or ..8"),
        (["build", "tokens", "midi", "-o", "out", "--transpose", "..6"], "'..6' is open on a side"),
    ],
)
def test_wrong_words_exit_with_2_and_one_sentence(words, said):
    done = subprocess.run([sys.executable, "-m", "megatron_music", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


def test_a_reader_that_leaves_early_is_no_error(midi):
    command = f"{sys.executable} -m megatron_music tokenize {midi} --bars 1 | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("rank", "status", "said"), [("0", 1, "megatron-music: No space"), ("1", 1, "megatron-music: rank 1: No space")]
)
def test_what_fails_on_one_process_alone_is_told_by_it(monkeypatch, capsys, rank, status, said):
    monkeypatch.setenv("RANK", rank)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "/out")

    assert guarded(full) == status and capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "words",
    [
        ["build", "tokens", "", "-o", "out"],
        ["build", "tokens", "x", "-o", ""],
        ["render", "", "-o", "z"],
        ["render", "{midi}", "-o", ""],
        ["tokenize", ""],
        ["plot", "{midi}", "-o", ""],
        ["train", ""],
        ["inspect", ""],
        ["generate", "midi", "", "-o", "new"],
    ],
)
def test_an_empty_path_is_not_the_current_folder(capsys, midi, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert "is empty; name a path" in refused(capsys, *(word.format(midi=midi) for word in words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid"]


def test_a_file_whose_name_is_not_utf_8_is_drawn_and_rendered(capsys, midi, tmp_path):
    odd = midi.rename(tmp_path / os.fsdecode(b"\xff\xfe.mid"))
    assert run(capsys, "plot", odd, "-o", tmp_path / "roll.png")[0] == 0
    assert (
        run(
            capsys,
            "render",
            odd,
            "-o",
            tmp_path / "wavs",
            "--own",
            "--html",
            tmp_path / "page.html",
            "--sample-rate",
            "4000",
        )[0]
        == 0
    )
    assert (tmp_path / "page.html").stat().st_size > 1000 and (tmp_path / "roll.png").stat().st_size > 1000


def test_memory_that_is_not_there_is_one_sentence(capsys):
    import numpy as np
    import torch

    for allocate in (lambda: np.ones(2**59), lambda: torch.ones(2**59), lambda: [0] * 2**59):
        assert guarded(lambda allocate=allocate: allocate() and 0) == 1
        said = capsys.readouterr().err
        assert said.startswith("megatron-music: there is not enough memory (") and said.count("\n") == 1, said
        assert "lower" in said and "model.seq_length" in said
    with pytest.raises(RuntimeError, match="something else"):  # a fault of ours keeps its traceback
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_settings_far_too_large_end_with_one_sentence_and_no_traceback():
    words = ["tiny", "parallel.distributed_timeout_minutes=1e30"]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_music", "train", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr.count("\n")) == (
        2,
        1,
    ) and "parallel.distributed_timeout_minutes is 1" in done.stderr


def test_a_folder_is_rendered_without_its_damaged_and_its_empty_files(capsys, midi, tmp_path):
    folder, page = tmp_path / "pieces", tmp_path / "page.html"
    folder.mkdir()
    midi.rename(folder / "a.mid")
    (folder / "b.mid").write_bytes(b"no music")
    write_midi(Score((), 4), folder / "c.mid")
    status, out, err = run(capsys, "render", folder, "-o", tmp_path / "wavs", "--own", "--html", page)
    assert status == 0 and out.startswith("1 piece, ") and out.splitlines()[-1] == "2 of 3 files skipped"
    assert [line.partition(" skipped: ")[2][: len(str(folder / "b.mid"))] for line in err.splitlines()[:2]] == [
        str(folder / "b.mid"),
        str(folder / "c.mid"),
    ]
    assert err.splitlines()[-1] == f"megatron-music: next: open {page} in a browser"
    assert [path.name for path in (tmp_path / "wavs").iterdir()] == ["a.wav"] and page.read_text().count("<audio") == 1
    status, out, _ = run(capsys, "render", folder, "-o", tmp_path / "more", "--own", "--json")
    assert status == 0 and [entry["file"] for entry in json.loads(out)["left_out"]] == [
        str(folder / "b.mid"),
        str(folder / "c.mid"),
    ]


def test_what_cannot_be_rendered_at_all_is_an_error_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "new does not exist; name a MIDI file, or a folder of them" in refused(capsys, "render", "new", "-o", "new")
    for name in ("b.mid", "c.mid"):
        (tmp_path / name).write_bytes(b"no music")
    assert "b.mid is no MIDI file" in refused(capsys, "render", "b.mid", "-o", "new")
    assert "none of 2 files could be rendered; the first: b.mid is no MIDI file" in refused(
        capsys, "render", ".", "-o", "new"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["plot", "tokenize", "detokenize"])
def test_a_folder_in_place_of_a_file_is_named_as_such(capsys, tmp_path, command):
    output = ["-o", tmp_path / "x.png"] if command != "tokenize" else []
    assert f"{tmp_path} is a folder; {command} takes one file" in refused(capsys, command, tmp_path, *output)


def test_commands_say_what_to_do_next_but_not_to_scripts_and_not_when_quiet(capsys, midi, tmp_path, verbosity):
    out = tmp_path / "out"

    def following(*arguments) -> list[str]:
        status, _, err = run(capsys, *arguments)
        assert status == 0, err
        return [line.partition("next: ")[2] for line in err.splitlines() if "next: " in line]

    built = ["build", "tokens", midi, "-o", out]
    assert following(*built) == [f"megatron-music train demo data.path={out} checkpoint.save=run"]
    assert following(*built, "--json") == [] == following(*built, "-q")
    assert following("build", "tokens", midi, "-o", tmp_path / "text", "--format", "text") == [], (
        "Megatron does not read text"
    )
    audio = tmp_path / "audio"
    assert following("corpus", "sounds", midi.parent, "-o", audio, "--num", 2, "--seconds", 1, "--own") == [
        f"megatron-music build latents {audio} -o data"
    ]
    (said,) = following("launch", "-o", tmp_path / "work")
    assert said.startswith(
        f"edit {tmp_path / 'work' / 'launch' / 'env.sh'}; then, in {tmp_path / 'work'}: megatron-music preflight "
    )


def test_the_next_command_can_be_copied_where_a_name_has_spaces(capsys, midi, tmp_path, verbosity):
    for words, rest in (
        (
            ["build", "tokens", midi, "-o", tmp_path / "my data"],
            ["train", "demo", f"data.path={tmp_path / 'my data'}", "checkpoint.save=run"],
        ),
        (
            ["corpus", "sounds", midi.parent, "-o", tmp_path / "my audio", "--num", 1, "--seconds", 1, "--own"],
            ["build", "latents", f"{tmp_path / 'my audio'}", "-o", "data"],
        ),
    ):
        status, _, err = run(capsys, *words)
        (command,) = (line.partition("next: ")[2] for line in err.splitlines() if "next: " in line)
        assert status == 0 and shlex.split(command) == ["megatron-music", *rest]
    _, told, _ = run(
        capsys, "sweep", "tiny", "-o", tmp_path / "my sweep", "--plan", "--vary", "train.micro_batch_size=1,2"
    )
    first, second = (
        shlex.split(line.partition(sign)[2])
        for line, sign in zip(told.splitlines(), ("machine: ", "job: "), strict=False)
    )
    assert first == ["megatron-music", "sweep", f"{tmp_path / 'my sweep'}"] and second[-1] == first[-1]


def test_a_dataset_of_the_other_kind_is_named_as_such(capsys, midi, tmp_path):
    tokens, latents = tmp_path / "tokens", tiny_latents(tmp_path / "latents")
    assert run(capsys, "build", "tokens", midi, "-o", tokens)[0] == 0
    said = refused(capsys, "train", "tiny", f"data.path={latents}")
    assert (
        f"{latents} is a dataset of latents, of a text-to-music model; a GPT is trained on one of `megatron-music "
        f"build tokens`" in said
    )
    said = refused(capsys, "train", "demo-text2muq", f"data.path={tokens}")
    assert (
        f"{tokens} is a dataset of tokens, of a GPT; a text-to-music model is trained on one of `megatron-music build "
        f"latents`" in said
    )


def test_a_build_that_was_done_before_says_so(capsys, midi, tmp_path):
    command = ["build", "tokens", midi, "-o", tmp_path / "out"]
    first, again = run(capsys, *command)[1], run(capsys, *command)[1]
    sentence = f"already built: {tmp_path / 'out'}; nothing to do"
    assert sentence not in first and again == f"{sentence}\n\n{first}"
    assert json.loads(run(capsys, *command, "--json")[1])["files"]["used"] == 1
