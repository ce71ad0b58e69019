"""PGD-20 robust accuracy on 1,000 images, and AutoAttack on a few: time to the verdicts of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import interleaved, row
from zoo.attacks.guide import fast_bf16
from zoo.datasets.base import to_float
from zoo.datasets.cifar10 import CIFAR10
from zoo.evaluation.evaluate import evaluate
from zoo.evaluation.protocols import EPS, STEP, protocol
from zoo.weights.load import load

N, BATCH, FEW = 1000, 250, 100
STEPS = 100  # of the parts of AutoAttack that take steps, as in the paper; torchattacks leaves them at 10


def run() -> list[dict]:
    return [pgd("trades-s7"), pgd("nfgsm-w15", ("torchattacks",)), autoattack("trades-s3")]


class Judge:
    """The first ``n`` test images, our verdicts on them, and those of other attacks on the same model."""

    def __init__(self, name: str, n: int) -> None:
        split = CIFAR10.load().split("test")
        self.model, self.images, self.labels = load(name), split.images[:n], split.labels[:n]
        self.x, self.y = to_float(self.images), torch.from_numpy(self.labels.copy())
        self.verdict: dict[str, float] = {}

    def batches(self):
        return zip(self.x.split(BATCH), self.y.split(BATCH), strict=True)

    def ours(self, key: str, **how: Any) -> Callable[[], None]:
        def measured() -> None:
            bits = evaluate(self.model, self.images, self.labels, protocol(key), **how)
            self.verdict["zoo, all in float32" if how else "zoo"] = float(bits.mean())

        return measured

    def judge(self, name: str, adversarial: list[torch.Tensor]) -> None:
        with torch.no_grad():
            right = [
                (self.model(a).argmax(1) == b).float() for a, (_, b) in zip(adversarial, self.batches(), strict=True)
            ]
        self.verdict[name] = torch.cat(right).mean().item()

    def result(
        self, what: str, contestants: dict[str, Callable[[], None]], goal: dict[str, float], rounds: int
    ) -> dict:
        ours = {"zoo": self.ours(what), "zoo, all in float32": self.ours(what, directions="fp32")}
        seconds = interleaved({**ours, **contestants}, rounds=rounds, warmup=1 if rounds > 1 else 0)
        return row("", "zoo", seconds, goal=goal) | {"verdict": self.verdict}


def pgd(name: str, beside: tuple[str, ...] = ("torchattacks", "foolbox", "ART")) -> dict:
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    it = Judge(name, N)

    def with_torchattacks() -> None:
        attack = torchattacks.PGD(it.model, eps=EPS, alpha=STEP, steps=20, random_start=True)
        it.judge("torchattacks", [attack(a, b) for a, b in it.batches()])

    def with_foolbox() -> None:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=20, random_start=True)
        wrapped = foolbox.PyTorchModel(it.model, bounds=(0, 1), device="cpu")
        it.judge("foolbox", [attack(wrapped, a, b, epsilons=EPS)[1] for a, b in it.batches()])

    def with_art() -> None:
        wrapped = PyTorchClassifier(
            it.model, loss=torch.nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, clip_values=(0, 1)
        )
        attack = ProjectedGradientDescentPyTorch(
            wrapped, eps=EPS, eps_step=STEP, max_iter=20, num_random_init=1, batch_size=BATCH, verbose=False
        )
        adversarial = attack.generate(it.x.numpy(), it.y.numpy())
        it.judge("ART", list(torch.from_numpy(adversarial).split(BATCH)))

    all_peers = {"torchattacks": with_torchattacks, "foolbox": with_foolbox, "ART": with_art}
    peers = {peer: all_peers[peer] for peer in beside}
    goal = {"torchattacks": 6.0 if fast_bf16(torch.device("cpu")) else 4.0}
    return it.result("pgd20", peers, goal, rounds=2) | {"what": f"PGD-20 robust accuracy, {name}, {N} images"}


def autoattack(name: str) -> dict:
    import torchattacks

    it = Judge(name, FEW)

    def with_torchattacks() -> None:
        attack = torchattacks.AutoAttack(it.model, eps=EPS, version="standard", n_classes=10)
        parts = [part for part in attack._autoattack.attacks if hasattr(part, "steps")]
        assert len(parts) == 3  # APGD, APGD-T and FAB-T
        for part in parts:
            part.steps = STEPS
        it.judge("torchattacks", [attack(a, b) for a, b in it.batches()])

    what = f"AutoAttack, {name}, {FEW} images"
    return it.result("autoattack", {"torchattacks": with_torchattacks}, {"torchattacks": 1.0}, rounds=1) | {
        "what": what
    }
