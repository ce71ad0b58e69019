"""Decision boundaries on a toy problem, as in Goldblum et al. 2020, Figure 2: ``python docs/boundaries.py``.

Points of the unit square in four classes, each with the box in which its class must not change. The same students learn
them without a teacher, by distillation on clean points (KD), and by ARD; the teacher is trained adversarially. The
first drawing of the points is shown, and robust points are counted over all.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from zoo.attacks import pgd
from zoo.train.methods import METHODS
from zoo.train.methods.method import Attack, Batch, Method, Step
from zoo.train.teachers.teacher import Answer

DOCS = Path(__file__).parent
DRAWINGS, POINTS, CLASSES, EPS, STEPS = 5, 40, 4, 0.06, 3000
ATTACK = Attack(eps=EPS, step=EPS / 4, steps=10)
COLOURS = ("#7fb2cf", "#e6a57e", "#a8c68f", "#c3a6d8")
DARK = ("#0b6e99", "#c2571a", "#4f7a28", "#7b4fa3")


def points(seed: int) -> tuple[Tensor, Tensor]:
    """x [N, 2, 1, 1] in the unit square, no two boxes of different classes overlapping, and labels [N]."""
    drawn, labels = [], []
    generator = torch.Generator().manual_seed(seed)
    while len(drawn) < POINTS:
        x, y = torch.rand(2, generator=generator) * 0.9 + 0.05, int(torch.randint(CLASSES, (1,), generator=generator))
        if all(y == other or (x - z).abs().max() > 2.1 * EPS for z, other in zip(drawn, labels, strict=True)):
            drawn.append(x)
            labels.append(y)
    return torch.stack(drawn)[:, :, None, None], torch.tensor(labels)


def network(depth: int, width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(2, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def trained(method: Method, x: Tensor, y: Tensor, depth: int, teacher: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = network(depth)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    soft = None
    if teacher is not None:
        with torch.no_grad():
            soft = Answer(teacher(x))
    for _ in range(STEPS):
        batch = Batch(x, y, torch.empty_like(x).uniform_(-1, 1), None)
        step = Step(net, net, batch, ATTACK, answer=soft)
        loss = method.loss(step, method.attacked(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def resisted(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which points [N] the net gets right, and which PGD-100 with ten restarts does not move to another class."""
    right = net(x).argmax(1) == y
    attacked = pgd(net, x, y, eps=EPS, steps=100, restarts=10)
    return right, right & (net(attacked).argmax(1) == y)


def draw(axes: plt.Axes, net: nn.Module, x: Tensor, y: Tensor, robust: Tensor) -> None:
    """Regions of the classes; boxes of points that are not robust are outlined in red."""
    side = torch.linspace(0, 1, 400)
    grid = torch.cartesian_prod(side, side)[:, [1, 0], None, None]
    with torch.no_grad():
        regions = net(grid).argmax(1).view(400, 400)
    axes.imshow(regions, origin="lower", extent=(0, 1, 0, 1), cmap=ListedColormap(COLOURS), vmin=0, vmax=CLASSES - 1)
    for place, label, safe in zip(x.flatten(1).tolist(), y.tolist(), robust.tolist(), strict=True):
        corner = (place[0] - EPS, place[1] - EPS)
        look = {"edgecolor": "black" if safe else "#d00000", "linewidth": 0.6 if safe else 1.6, "facecolor": "none"}
        axes.add_patch(Rectangle(corner, 2 * EPS, 2 * EPS, **look))
        axes.plot(*place, "o", color=DARK[label], markersize=3)
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))


def nets(x: Tensor, y: Tensor) -> dict[str, nn.Module]:
    teacher = trained(METHODS["pgd-at"](), x, y, depth=10)
    return {
        "teacher: PGD-AT, 10 layers": teacher,
        "student without teacher: natural": trained(METHODS["natural"](), x, y, depth=5),
        "student by KD": trained(METHODS["kd"](), x, y, depth=5, teacher=teacher),
        "student by KD, t = 10": trained(METHODS["kd"](temperature=10.0), x, y, depth=5, teacher=teacher),
        "student by ARD": trained(METHODS["ard"](alpha=1.0), x, y, depth=5, teacher=teacher),
    }


def main() -> None:
    counts: dict[str, list[int]] = {}
    for drawing in range(DRAWINGS):
        x, y = points(seed=3 + drawing)
        learned = nets(x, y)
        found = {title: resisted(net, x, y) for title, net in learned.items()}
        for title, (right, robust) in found.items():
            counts.setdefault(title, []).append(int(robust.sum()))
            print(f"{title}: {right.sum()} of {POINTS} right, {robust.sum()} robust", flush=True)
        if drawing > 0:
            continue
        figure, panels = plt.subplots(1, len(learned), figsize=(3 * len(learned), 3.4), dpi=150)
        for axes, (title, net) in zip(panels, learned.items(), strict=True):
            right, robust = found[title]
            draw(axes, net, x, y, robust)
            axes.set_title(f"{title}\n{right.sum()} of {POINTS} right, {robust.sum()} robust", fontsize=9)
        figure.tight_layout()
        figure.savefig(DOCS / "boundaries.png", bbox_inches="tight")
    for title, robust in counts.items():
        print(f"{title}: robust {sum(robust)} of {DRAWINGS * POINTS} ({min(robust)} to {max(robust)} of {POINTS})")


if __name__ == "__main__":
    main()
