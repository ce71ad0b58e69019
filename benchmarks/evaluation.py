"""PGD-20 robust accuracy of S7 on 1,000 images: time to the same verdict as torchattacks, foolbox and ART."""

from __future__ import annotations

import torch

from benchmarks.timing import interleaved, row
from zoo.datasets.base import to_float
from zoo.datasets.cifar10 import CIFAR10
from zoo.evaluation.evaluate import evaluate
from zoo.evaluation.protocols import EPS, STEP, protocol
from zoo.weights.load import load

MODEL, N, BATCH = "trades-s7", 1000, 250


def run() -> list[dict]:
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model = load(MODEL)
    split = CIFAR10.load().split("test")
    images, labels = split.images[:N], split.labels[:N]
    x, y = to_float(images), torch.from_numpy(labels.copy())
    verdict: dict[str, float] = {}

    def batches():
        return zip(x.split(BATCH), y.split(BATCH), strict=True)

    def judge(name: str, adversarial: list[torch.Tensor]) -> None:
        with torch.no_grad():
            right = [(model(a).argmax(1) == b).float() for a, (_, b) in zip(adversarial, batches(), strict=True)]
        verdict[name] = torch.cat(right).mean().item()

    def ours() -> None:
        verdict["zoo"] = float(evaluate(model, images, labels, protocol("pgd20")).mean())

    def with_torchattacks() -> None:
        attack = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=20, random_start=True)
        judge("torchattacks", [attack(a, b) for a, b in batches()])

    def with_foolbox() -> None:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=20, random_start=True)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        judge("foolbox", [attack(wrapped, a, b, epsilons=EPS)[1] for a, b in batches()])

    def with_art() -> None:
        wrapped = PyTorchClassifier(
            model, loss=torch.nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, clip_values=(0, 1)
        )
        attack = ProjectedGradientDescentPyTorch(
            wrapped, eps=EPS, eps_step=STEP, max_iter=20, num_random_init=1, batch_size=BATCH, verbose=False
        )
        adversarial = attack.generate(x.numpy(), y.numpy())
        judge("ART", list(torch.from_numpy(adversarial).split(BATCH)))

    seconds = interleaved(
        {"zoo": ours, "torchattacks": with_torchattacks, "foolbox": with_foolbox, "ART": with_art}, rounds=3
    )
    result = row(f"PGD-20 robust accuracy, {MODEL}, {N} images", "zoo", seconds, goal={"torchattacks": 4.0})
    result["verdict"] = verdict
    return [result]
