"""The adapter for machines without CUDA: what it computes in bfloat16."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from tiny_gpt import tiny_dataset

from megatron_music.parallel import cpu_backend

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the adapter does nothing where CUDA is")


@pytest.fixture
def adapter(monkeypatch):
    """The adapter as on a processor without bfloat16 arithmetic."""
    monkeypatch.setattr(cpu_backend, "_multiplies_bfloat16", lambda: False)
    assert cpu_backend.install()
    yield
    cpu_backend.uninstall()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16()


@pytest.mark.parametrize(
    "product",
    [
        lambda: F.linear(random(5, 64), random(7, 64), random(7)),
        lambda: random(5, 64) @ random(64, 3),
        lambda: torch.bmm(random(2, 5, 64), random(2, 64, 3)),
        lambda: F.scaled_dot_product_attention(
            random(1, 2, 5, 8), random(1, 2, 5, 8), random(1, 2, 5, 8), is_causal=True
        ),
    ],
)
def test_products_of_bfloat16_are_those_of_float32_rounded(adapter, product):
    found = product()
    cpu_backend.uninstall()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, product(), rtol=2**-7, atol=2**-7)


def test_gradients_are_bfloat16_too(adapter):
    weight = random(7, 64).requires_grad_()
    F.linear(random(5, 64), weight).sum().backward()
    assert weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        weight.grad, random(5, 64).float().sum(0).expand(7, 64).bfloat16(), rtol=2**-7, atol=2**-7
    )


def test_float32_stays_as_it_is(adapter):
    left, right = random(5, 64).float(), random(64, 3).float()
    found = left @ right
    cpu_backend.uninstall()
    assert torch.equal(found, left @ right)


def test_what_is_recomputed_in_a_backward_pass_is_what_was_computed(adapter):
    seen = []

    def product(hidden):
        seen.append(F.linear(hidden, random(300, 64)).detach())
        return seen[-1].sum() * hidden.sum()

    inputs = random(5, 64).requires_grad_()
    torch.utils.checkpoint.checkpoint(product, inputs, use_reentrant=False).backward()
    # Were it computed otherwise, torch would miss what it has kept, and raise.
    assert len(seen) == 2 and torch.equal(*seen)


def test_training_where_the_system_has_no_affinity(tmp_path):
    """As macOS, where Python has no os.sched_getaffinity."""
    code = "import os, sys; del os.sched_getaffinity; from megatron_music.cli.entry import main; "
    code += "sys.exit(main(sys.argv[1:]))"
    command = [
        "train",
        "tiny",
        f"data.path={tiny_dataset(tmp_path / 'data')}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=1",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "finished; iteration 1 is saved" in done.stderr, done.stderr
