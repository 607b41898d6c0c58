"""Pictures of speeds, read back from their words."""

from xml.etree import ElementTree

import matplotlib
import pytest

from megatron_music.profiling.scaling_chart import plot_scaling, plot_sweep
from megatron_music.profiling.sweep import IMPOSSIBLE, MEASURED, OUT_OF_MEMORY, Figures


@pytest.fixture
def words(tmp_path):
    """What a picture says, in its order."""

    def draw(plot, *arguments, **options) -> list[str]:
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            plot(*arguments, tmp_path / "picture.svg", **options)
        tree = ElementTree.parse(tmp_path / "picture.svg")
        return ["".join(element.itertext()).strip() for element in tree.iter("{http://www.w3.org/2000/svg}text")]

    return draw


def row(number: int, gpus: int, tflops: float | None, status: str = MEASURED, **settings) -> Figures:
    speed = tflops and 1000 * tflops * gpus
    return Figures(
        number,
        gpus,
        settings,
        status,
        "",
        is_best=tflops == 4.0,
        precision="bf16",
        sequences_per_gpu=8.0,
        tflops=tflops,
        tokens_per_second=speed,
    )


def test_predicted_scaling_says_its_speeds_and_its_efficiency(words):
    said = words(plot_scaling, [32, 256, 8192], [100_152, 792_652, 25_327_394], title="Predicted scaling of $a$_recipe")
    for word in (
        "100 k",
        "793 k",
        "25.3 M",
        "100.0%",
        "98.9%",
        "98.8%",
        "8,192",
        "GPUs",
        "tokens per second",
        "efficiency, %",
    ):
        assert word in said, word
    assert "perfect scaling" in said and "Predicted scaling of $a$_recipe" in said


def test_a_sweep_says_each_number_and_why_a_row_has_none(words):
    settings = {"parallel.tensor_model_parallel_size": "2", "train.micro_batch_size": "1"}
    rows = [
        row(0, 1, 2.5, **settings),
        row(1, 2, 4.0, **settings),
        row(2, 2, None, IMPOSSIBLE),
        row(3, 2, None, OUT_OF_MEMORY),
    ]
    said = words(plot_sweep, rows, title="Sweep of demo model.seq_length=$1")
    for word in (
        "2.5",
        "4",
        "impossible",
        "out of memory",
        "1 GPU, TP 2, MBS 1",
        "2 GPUs, TP 2, MBS 1",
        "best row",
        "100%",
        "160%",
        "model TFLOP/s per GPU",
        "Sweep of demo model.seq_length=$1",
        "bf16, 8 sequences per GPU",
        "perfect scaling",
    ):
        assert word in said, word
    assert "TP: tensor model parallel size; MBS: micro batch size" in said


def test_a_sweep_on_one_number_of_gpus_has_bars_alone(words):
    said = words(plot_sweep, [row(0, 4, 2.5), row(1, 4, 4.0)], title="Sweep")
    assert "4 GPUs" in said and "tokens per second, the best layout of each" not in said


def test_a_sweep_in_which_nothing_was_measured_is_still_a_picture(words):
    assert words(plot_sweep, [row(0, 4, None, IMPOSSIBLE)], title="Sweep").count("impossible") == 1
