"""Where a caption has several right answers, flow matching finds each with its weight, and regression none.

The short form of benchmarks/one_to_many.py.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from one_to_many import MODES, WEIGHTS, one_hot, sampled, shares_of, train_both


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other at every small product take thirty times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def nets():
    return train_both(1000)


@pytest.mark.parametrize("caption", [0, 1])
def test_flow_matching_finds_every_answer_with_its_weight(nets, caption):
    shares, near = shares_of(sampled(nets[0], caption, range(1500)), caption)
    assert near > 0.9
    assert (shares - WEIGHTS).abs().max() < 0.06, shares


def test_regression_finds_none(nets):
    points = nets[1](one_hot(torch.arange(2))).detach()
    torch.testing.assert_close(points, torch.einsum("m, cmd -> cd", WEIGHTS, MODES), rtol=0, atol=0.1)
    assert all(shares_of(points[[caption]], caption)[1] == 0 for caption in (0, 1))


def test_guidance_favours_the_common_answer(nets):
    plain, guided = (shares_of(sampled(nets[0], 0, range(1500), scale=scale), 0)[0] for scale in (1.0, 3.0))
    assert guided[2] < plain[2], "the rare answer becomes rarer"


def test_a_sample_is_the_same_alone_and_among_others(nets):
    together = sampled(nets[0], 0, range(16))
    alone = torch.cat([sampled(nets[0], 0, [index]) for index in range(16)])
    assert (together - alone).abs().max() < 1e-5
    assert torch.equal(together, sampled(nets[0], 0, range(16)))
