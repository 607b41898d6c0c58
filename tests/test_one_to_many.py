"""Where a caption has several right answers, flow matching finds each with its weight, and regression none.

Two captions of three points each in the plane, with weights 0.6, 0.3 and 0.1.
"""

import pytest
import torch

from megatron_music.flow.draws import sample_noise
from megatron_music.flow.path import flow_loss, interpolate
from megatron_music.flow.solver import solve

WEIGHTS = torch.tensor([0.6, 0.3, 0.1])
MODES = torch.tensor([[[1.5, 1.5], [-1.5, 1.0], [0.0, -1.8]], [[-1.5, -1.5], [1.5, -1.0], [0.0, 1.8]]])


class Net(torch.nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        widths = [inputs, 96, 96, 2]
        layers = [layer for pair in zip(widths, widths[1:]) for layer in (torch.nn.Linear(*pair), torch.nn.SiLU())]
        self.net = torch.nn.Sequential(*layers[:-1])

    def forward(self, *inputs):
        return self.net(torch.cat(inputs, dim=1))


def answers(captions, random):
    modes = torch.multinomial(WEIGHTS, len(captions), replacement=True, generator=random)
    return MODES[captions, modes] + 0.05 * torch.randn(len(captions), 2, generator=random)


def features(sigma_B):
    waves = (function(torch.pi * sigma_B * k) for k in (1, 2) for function in (torch.sin, torch.cos))
    return torch.stack([sigma_B, *waves], dim=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other at every small product take thirty times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(net, loss_of):
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    steps = 1000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        captions = torch.randint(2, (512,), generator=random)
        loss = loss_of(net, captions, answers(captions, random), random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def one_hot(captions):
    return torch.nn.functional.one_hot(captions, 2).float()


def matching_loss(net, captions, latents, random):
    noise = torch.randn(latents.shape, generator=random)
    sigma = torch.rand(len(latents), generator=random)
    noisy, velocity = interpolate(latents, noise, sigma)
    return flow_loss(net(noisy, features(sigma), one_hot(captions)), velocity)


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    return train(Net(9), matching_loss)


def shares_of(points, caption):
    """What part of the points is nearest to each answer, and within a third of one."""
    distances, nearest = torch.cdist(points, MODES[caption]).min(1)
    return torch.bincount(nearest, minlength=3) / len(points), float((distances < 0.33).float().mean())


@torch.no_grad()
def sampled(net, caption, indices, num_steps=30):
    captions = one_hot(torch.full((len(indices),), caption))
    noise = sample_noise((2,), 4, indices)
    return solve(lambda noisy, sigma: net(noisy, features(sigma), captions), noise, num_steps, kind="midpoint")


@pytest.mark.parametrize("caption", [0, 1])
def test_flow_matching_finds_every_answer_with_its_weight(flow, caption):
    shares, near = shares_of(sampled(flow, caption, range(1500)), caption)
    assert near > 0.9
    assert (shares - WEIGHTS).abs().max() < 0.06, shares


def test_regression_finds_none():
    torch.manual_seed(0)
    net = train(Net(2), lambda net, captions, latents, random: flow_loss(net(one_hot(captions)), latents))
    points = net(one_hot(torch.arange(2))).detach()
    torch.testing.assert_close(points, torch.einsum("m, cmd -> cd", WEIGHTS, MODES), rtol=0, atol=0.1)
    assert all(shares_of(points[[caption]], caption)[1] == 0 for caption in (0, 1))


def test_a_sample_is_the_same_alone_and_among_others(flow):
    together = sampled(flow, 0, range(16))
    alone = torch.cat([sampled(flow, 0, [index]) for index in range(16)])
    assert (together - alone).abs().max() < 1e-5
    assert torch.equal(together, sampled(flow, 0, range(16)))
