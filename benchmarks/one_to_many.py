"""Where a caption has several right answers: flow matching, at several solvers and guidance scales, beside regression.

    python benchmarks/one_to_many.py [--steps 4000] [--json docs/results/one-to-many.json] [--plot docs/results/one-to-many.png]

Two captions of three points each in the plane, with weights 0.6, 0.3 and 0.1, learned by a net of 19,000 parameters
with the package's own path, solvers and guidance. Of 4,000 samples a caption: `near`, the share within a third of an
answer; `total variation` between the shares of answers and their weights; and what of that is chance, from as many
draws of the truth.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import itertools

import torch
from machine import machine

from megatron_music.flow.guidance import Guided
from megatron_music.flow.noise import sample_noise
from megatron_music.flow.path import flow_loss, interpolate
from megatron_music.flow.solver import solve, solve_adaptive

WEIGHTS = torch.tensor([0.6, 0.3, 0.1])
MODES = torch.tensor([[[1.5, 1.5], [-1.5, 1.0], [0.0, -1.8]], [[-1.5, -1.5], [1.5, -1.0], [0.0, 1.8]]])
SAMPLES = 4000
DROPOUT = 0.1


class Net(torch.nn.Module):
    """Inputs side by side to a point of the plane."""

    def __init__(self, inputs: int):
        super().__init__()
        widths = [inputs, 96, 96, 2]
        layers = [layer for pair in itertools.pairwise(widths) for layer in (torch.nn.Linear(*pair), torch.nn.SiLU())]
        self.net = torch.nn.Sequential(*layers[:-1])

    def forward(self, *inputs):
        return self.net(torch.cat(inputs, dim=1))


def answers(captions, random):
    """A right answer to each caption, drawn by the weights."""
    modes = torch.multinomial(WEIGHTS, len(captions), replacement=True, generator=random)
    return MODES[captions, modes] + 0.05 * torch.randn(len(captions), 2, generator=random)


def features(sigma_B):
    """Sigma and some of its waves [B, 5]."""
    waves = (function(torch.pi * sigma_B * k) for k in (1, 2) for function in (torch.sin, torch.cos))
    return torch.stack([sigma_B, *waves], dim=1)


def one_hot(captions):
    return torch.nn.functional.one_hot(captions, 2).float()


def train(net, loss_of, steps: int):
    """Adam over made-up batches of 512."""
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        captions = torch.randint(2, (512,), generator=random)
        loss = loss_of(net, captions, answers(captions, random), random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def matching_loss(net, captions, latents, random):
    """Flow matching; some samples see no caption."""
    noise = torch.randn(latents.shape, generator=random)
    sigma = torch.rand(len(latents), generator=random)
    noisy, velocity = interpolate(latents, noise, sigma)
    keeps = torch.rand(len(latents), 1, generator=random) >= DROPOUT
    return flow_loss(net(noisy, features(sigma), one_hot(captions) * keeps), velocity)


def regression_loss(net, captions, latents, random):
    return flow_loss(net(one_hot(captions)), latents)


def train_both(steps: int):
    """A net that matches flows, and one that regresses."""
    nets = []
    for inputs, loss in ((9, matching_loss), (2, regression_loss)):
        torch.manual_seed(0)
        nets.append(train(Net(inputs), loss, steps))
    return nets


@torch.no_grad()
def sampled(net, caption: int, indices, num_steps: int = 30, kind: str = "midpoint", scale: float = 1.0):
    """Samples of a caption by the package's solvers and guidance [B, 2]."""
    noise = sample_noise((2,), 4, indices)
    condition = {"caption": one_hot(torch.full((len(indices),), caption))}

    def velocity(noisy, sigma, condition):
        return net(noisy, features(sigma), condition["caption"])

    guided = Guided(velocity, condition, {"caption": torch.zeros(1, 2)}, scale)
    return solve_adaptive(guided, noise).latents if kind == "dopri5" else solve(guided, noise, num_steps, kind=kind)


def shares_of(points, caption: int):
    """What part of the points is nearest to each answer, and within a third of one."""
    distances, nearest = torch.cdist(points, MODES[caption]).min(1)
    return torch.bincount(nearest, minlength=3) / len(points), float((distances < 0.33).float().mean())


def row_of(points_of) -> dict:
    """Means over both captions."""
    found = [shares_of(points_of(caption), caption) for caption in (0, 1)]
    variations = [0.5 * float((shares - WEIGHTS).abs().sum()) for shares, _ in found]
    shares = torch.stack([shares for shares, _ in found]).mean(0)
    return {
        "near": sum(near for _, near in found) / 2,
        "total_variation": sum(variations) / 2,
        "shares": [round(float(share), 4) for share in shares],
    }


def compare(steps: int) -> tuple[dict, dict]:
    """The rows, and points to draw."""
    flow, regression = train_both(steps)
    random, numbers = torch.Generator().manual_seed(5), range(SAMPLES)
    points = {
        "the truth": [answers(torch.full((SAMPLES,), caption), random) for caption in (0, 1)],
        "regression": [regression(one_hot(torch.full((SAMPLES,), caption))).detach() for caption in (0, 1)],
    }
    for name, options in {
        "euler, 10 steps": {"num_steps": 10, "kind": "euler"},
        "euler, 50 steps": {"num_steps": 50, "kind": "euler"},
        "midpoint, 30 steps": {},
        "dopri5": {"kind": "dopri5"},
        "euler, 50 steps, guidance 3": {"num_steps": 50, "kind": "euler", "scale": 3.0},
    }.items():
        points[name] = [sampled(flow, caption, numbers, **options) for caption in (0, 1)]
    return {name: row_of(found.__getitem__) for name, found in points.items()}, points


def draw(points: dict, rows: dict, path: Path) -> None:
    """One panel per row of the table: what was sampled for each caption, and the answers of the data as crosses."""
    from matplotlib.figure import Figure

    from megatron_music.music.instruments import TRACK_COLOURS
    from megatron_music.reports.pianoroll import save_figure

    names = {
        "the truth": "the data",
        "regression": "regression",
        "euler, 50 steps": "flow, Euler, 50 steps",
        "euler, 50 steps, guidance 3": "the same with guidance 3",
    }
    figure = Figure(figsize=(3.1 * len(names), 4.3), layout="compressed")
    for axes, (name, title) in zip(figure.subplots(1, len(names), sharey=True), names.items(), strict=True):
        for caption, marker in ((0, "o"), (1, "^")):
            axes.scatter(
                *points[name][caption][:800].T,
                s=14 if name == "regression" else 7,
                alpha=0.5,
                color=TRACK_COLOURS[caption],
                marker=marker,
                linewidths=0,
                label=f"sampled for caption {caption + 1}",
                zorder=2,
            )
        crosses = torch.cat([MODES[caption] for caption in (0, 1)])
        axes.scatter(*crosses.T, marker="x", color="black", s=34, linewidths=1.2, label="answer in the data", zorder=3)
        axes.set_title(f"{title}\n{rows[name]['near']:.0%} near an answer", fontsize="medium")
        axes.set(
            xlim=(-3, 3),
            ylim=(-3, 3),
            aspect="equal",
            xticks=(-2, 0, 2),
            yticks=(-2, 0, 2),
            xlabel="first number of the answer",
        )
        axes.grid(True, color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel("second number of the answer")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, markerscale=1.8)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, points = compare(options.steps)
    print(f"{'':30}  near  total variation  shares of {WEIGHTS.tolist()}")
    for name, row in rows.items():
        print(f"{name:30} {row['near']:5.3f}  {row['total_variation']:15.3f}  {row['shares']}")
    if options.json:
        command = f"python benchmarks/one_to_many.py --steps {options.steps}"
        options.json.write_text(json.dumps({"command": command, "machine": machine(), "rows": rows}, indent=1) + "\n")
    if options.plot:
        draw(points, rows, options.plot)


if __name__ == "__main__":
    main()
