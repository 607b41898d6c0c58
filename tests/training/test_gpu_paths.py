"""What training does on a GPU, as far as a machine without one can tell: waits, contexts, precision, which GPU is
whose.
"""

import threading

import megatron.core.optimizer.clip_grads as megatron_clipping
import pytest
import torch
from megatron.core.utils import local_multi_tensor_l2_norm
from tiny_gpt import tiny_dataset, tiny_run
from torch.overrides import TorchFunctionMode

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.writer import _copy
from megatron_music.config.errors import ConfigError
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import ModelConfig, TrainConfig
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine, set_float32_precision
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.optimizer import l2_norm
from megatron_music.training.state import Progress, begin_save


@pytest.fixture
def engine(tmp_path):
    config = tiny_run(tiny_dataset(tmp_path / "data"))
    distributed.start(config.parallel)
    yield Engine(config, gpt_task(config))
    distributed.stop()


@pytest.fixture
def gradients() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=random) * 10**-scale
        for scale, size in enumerate([(7, 5), (1,), (64, 3), (2, 3, 4), (0,)])
    ]


def test_the_norm_of_the_gradients_is_that_of_before(engine, gradients):
    found, _ = l2_norm(2048, None, [gradients], False)
    before, _ = local_multi_tensor_l2_norm(2048, None, [gradients], False)
    assert found.shape == before.shape == (1,)
    torch.testing.assert_close(found, before, rtol=1e-6, atol=0)
    gradients[2][0, 0] = float("nan")
    assert l2_norm(2048, None, [gradients], False)[0].isnan()


def test_measuring_gradients_waits_for_no_parameter(engine, gradients):
    # A tensor without data raises where a number is taken out of it, which is what waits for a GPU.
    without_data = [gradient.to("meta") for gradient in gradients]
    with pytest.raises(RuntimeError, match="meta tensor"):
        local_multi_tensor_l2_norm(2048, None, [without_data], False)
    assert l2_norm(2048, None, [without_data], False)[0].shape == (1,)
    assert megatron_clipping.l2_norm_impl is l2_norm  # since an engine was built


def test_writing_in_a_thread_opens_no_context_on_a_gpu(engine, tmp_path, monkeypatch):
    save = begin_save(tmp_path / "run", engine, Progress(1, 8), copies=True)
    asked, results = [], []
    # A thread's current GPU is the machine's first: whatever asks for it there opens a context on it.
    for name in ("current_stream", "current_device", "synchronize", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: asked.append(name))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        thread = threading.Thread(target=lambda: results.append(save.write()))
        thread.start()
        thread.join()
    assert asked == [] and len(results) == 1
    monkeypatch.undo()
    save.finish(lambda: results[0])
    assert find_checkpoint(tmp_path / "run").name == "iter_0000001"


def test_batches_are_copied_to_a_gpu_from_page_locked_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("meta"))  # stands in for a GPU
    batch = {"tokens": torch.zeros(2, 3), "there already": torch.zeros(2, 3, device="meta")}
    assert {name: value.device.type for name, value in distributed.to_device(batch).items()} == dict.fromkeys(
        batch, "meta"
    )
    assert len(pinned) == 1 and pinned[0] is batch["tokens"]


def test_without_a_gpu_no_memory_is_page_locked(engine, monkeypatch):
    def refuse(tensor):
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    batch = {"tokens": torch.zeros(2, 3)}
    assert distributed.to_device(batch)["tokens"] is batch["tokens"]


class _OnGpu(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True


class _Asked(TorchFunctionMode):
    """Records whether page-locked memory is asked for, and gives ordinary memory."""

    def __init__(self):
        super().__init__()
        self.pins = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "pin_memory" in kwargs:
            self.pins.append(kwargs.pop("pin_memory"))
        return function(*args, **kwargs)


def test_a_save_beside_training_copies_from_a_gpu_into_page_locked_memory():
    for tensor, pins in ((torch.ones(3), False), (torch.ones(3).as_subclass(_OnGpu), True)):
        with _Asked() as asked:
            copy = _copy(tensor)
        assert asked.pins == [pins] and copy.tolist() == [1, 1, 1] and copy.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize(
    ("environment", "count", "gpu"),
    [
        ({}, 8, 0),
        ({"LOCAL_RANK": "3"}, 8, 3),
        ({"LOCAL_RANK": "3", "SLURM_LOCALID": "3", "SLURM_GPUS_PER_TASK": "1"}, 1, 0),
        ({"LOCAL_RANK": "3", "SLURM_LOCALID": "3", "SLURM_GPUS_PER_TASK": "2"}, 2, 1),
    ],
)
def test_a_process_takes_its_own_gpu(environment, count, gpu):
    assert distributed.own_gpu(environment, count) == gpu


@pytest.mark.parametrize(
    "environment",
    [
        {"LOCAL_RANK": "1"},
        # One task is a torchrun of two processes: its one GPU would be shared.
        {"LOCAL_RANK": "1", "SLURM_LOCALID": "0", "SLURM_GPUS_PER_TASK": "1"},
    ],
)
def test_two_processes_do_not_share_a_gpu(environment):
    with pytest.raises(
        ConfigError,
        match=r"process 2 of this machine and sees 1 GPU; start 1 or fewer .* let each process see them all",
    ):
        distributed.own_gpu(environment, 1)


@pytest.fixture
def gpu_named(monkeypatch):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("precision", "units"), [("high", "TF32"), ("highest", "float32")])
def test_a_run_in_float32_says_so_and_chooses_its_products(gpu_named, capsys, precision, units):
    set_float32_precision(
        RunConfig(model=ModelConfig(size="tiny"), train=TrainConfig(float32_matmul_precision=precision))
    )
    assert torch.get_float32_matmul_precision() == precision
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and f"in float32 on NVIDIA H200, matrix products on {units} units" in said
        and "train.bf16=true" in said
    )


def test_a_run_in_bfloat16_has_nothing_to_say(gpu_named, capsys):
    set_float32_precision(RunConfig(model=ModelConfig(size="tiny"), train=TrainConfig(bf16=True)))
    assert torch.get_float32_matmul_precision() == "high" and capsys.readouterr().err == ""


def test_without_a_gpu_products_stay_as_they_are(engine, capsys):
    assert torch.get_float32_matmul_precision() == "highest" and "float32" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"seed": 2**32}, "train.seed is 4294967296, .*set train.seed below 4294967296"),
        ({"float32_matmul_precision": "tf32"}, "train.float32_matmul_precision is 'tf32'; use highest, high or medium"),
    ],
)
def test_what_no_generator_or_gpu_takes_is_refused_by_its_field(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**fields)
    TrainConfig(seed=2**32 - 1)
