"""The accuracy-robustness predictor: an ensemble of small MLPs from genes to a sub-net's clean and robust accuracy.

A few hundred noisy labels are easy to overfit. With 300 of the tiny space on 1,000 images each (synthetic accuracies)
Kendall's tau on unseen sub-nets is 0.9. It is 0.88 with one-hot genes at full scale, and 0.75 without weight decay too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.system.errors import IntegrityError, Unreachable, UsageError
from zoo.train.proard.labelled import Labelling, Labels
from zoo.train.spaces.dynamic import Genes, Space
from zoo.weights.tensors import read_metadata, read_tensors, save_weights

KIND = "accuracy-robustness predictor"
LEAST = 10  # labels
ONE_HOT = 0.1  # scale of the one-hot genes
Layers = list[tuple[Tensor, Tensor]]  # weights [M, in, out] and biases [M, 1, out], M members


# -- the predictor -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Predictor:
    """``layers`` of all members map features to standardised accuracies; ``centre`` and ``scale`` [2] undo that.

    ``weights_sha256`` is the hash of the dynamic net's file, from the labels; ``labelling``: how these were measured,
    None where the file does not say.
    """

    space: Space
    layers: Layers
    centre: Tensor
    scale: Tensor
    weights_sha256: str = ""
    labelling: Labelling | None = None

    def predict(self, genes: Genes) -> tuple[np.ndarray, np.ndarray]:
        """Clean and robust accuracy of sub-nets [n, G]: the members' mean and standard deviation, float64 [n, 2]."""
        with torch.inference_mode():
            predicted = _forward(self.layers, torch.from_numpy(features(self.space, genes))).double()  # [M, n, 2]
            predicted = predicted * self.scale + self.centre
        return predicted.mean(0).numpy(), predicted.std(0, correction=0).numpy()

    def save(self, path: Path) -> None:
        """Write it atomically as safetensors."""
        tensors = {"centre": self.centre, "scale": self.scale}
        for place, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{place}.weight": weight, f"{place}.bias": bias}
        of = {"space": self.space.name, "space_sha256": fingerprint(self.space), "weights_sha256": self.weights_sha256}
        how = {} if self.labelling is None else {key: str(value) for key, value in self.labelling._asdict().items()}
        save_weights(tensors, path, kind=KIND, **of, **how)

    @classmethod
    def load(cls, path: Path, space: Space) -> Predictor:
        """Read what :meth:`save` wrote.

        Raises:
            Unreachable: there is no such file.
            UsageError: it was fitted to another space, or to another definition of this one.
            IntegrityError: the file is damaged or is not a predictor.
        """
        if not path.is_file():
            raise Unreachable(f"there is no predictor at '{path}'")
        tensors, metadata = read_tensors(path), read_metadata(path)
        if metadata.get("kind") != KIND:
            raise IntegrityError(f"'{path}' is not an {KIND}")
        if (fitted := metadata.get("space")) != space.name:
            raise UsageError(
                f"'{path}' is fitted to space {fitted}, not {space.name}: fit one to labels of {space.name}"
            )
        if metadata.get("space_sha256") != fingerprint(space):
            raise UsageError(f"'{path}' is fitted to another definition of space {space.name}: fit it again")
        try:
            layers = [(tensors[f"{k}.weight"], tensors[f"{k}.bias"]) for k in range((len(tensors) - 2) // 2)]
            told = metadata.keys() >= {*Labelling._fields}
            labelling = Labelling(**{key: int(metadata[key]) for key in Labelling._fields}) if told else None
            predictor = cls(space, layers, tensors["centre"], tensors["scale"], metadata["weights_sha256"], labelling)
            predictor.predict(space.smallest)
        except (KeyError, IndexError, RuntimeError, ValueError):
            raise IntegrityError(f"the tensors in '{path}' do not make a predictor: fit it again") from None
        return predictor


def fingerprint(space: Space) -> str:
    """The SHA-256 of a space's definition: its genes, and the MACs of its smallest and largest sub-net."""
    ends = space.macs(np.concatenate([space.smallest, space.largest])).tolist()
    return hashlib.sha256(json.dumps([space.name, [asdict(gene) for gene in space.genes], ends]).encode()).hexdigest()


def features(space: Space, genes: Genes) -> np.ndarray:
    """The input of a predictor, float32 [n, F]: one-hot genes, their levels, and the logarithm of the MACs.

    Levels and MACs lie in [-1, 1]; a gene without effect has level -1.
    """
    levels = 2 * (genes + 1) / space.choices * space.active(genes) - 1
    low, high = np.log(space.macs(np.concatenate([space.smallest, space.largest])))
    cost = 2 * (np.log(space.macs(genes)) - low) / (high - low) - 1
    return np.concatenate([ONE_HOT * space.encode(genes), levels, cost[:, None]], 1).astype(np.float32)


def _forward(layers: Layers, x: Tensor) -> Tensor:
    """Features [n, F], or [M, n, F] with a batch for each member, to standardised accuracies [M, n, 2]."""
    z = x.expand(len(layers[0][0]), *x.shape[-2:])
    for place, (weight, bias) in enumerate(layers):
        z = torch.baddbmm(bias, F.silu(z, inplace=not z.requires_grad) if place else z, weight)
    return z


def fit(
    space: Space,
    labels: Labels,
    *,
    members: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    steps: int = 400,
    batch: int = 64,
    lr: float = 1e-2,
    weight_decay: float = 1000.0,
    rank: float = 0.5,
    seed: int = 0,
) -> Predictor:
    """Fit a predictor. Members differ by their initial weights and by their labels, drawn with replacement.

    Args:
        members: MLPs, trained at once.
        weight_decay: decoupled weight decay for one label; it is divided by the number of labels.
        rank: weight of the pairwise loss beside the squared error: the cross-entropy of "which of the two is better"
            (RankNet, Burges et al. 2005), with the sigmoid of the labels' difference as the target.

    Raises:
        UsageError: there are too few labels.
    """
    if len(labels) < LEAST or members < 1:
        raise UsageError(f"a predictor needs at least {LEAST} labels and 1 member, not {len(labels)} and {members}")
    seeded = torch.Generator().manual_seed(seed)
    target = torch.from_numpy(labels.accuracy).float()
    centre, scale = target.mean(0), target.std(0).clamp_min(1e-6)
    x, y = torch.from_numpy(features(space, labels.genes)), (target - centre) / scale
    layers: Layers = []
    for n_in, n_out in zip((x.shape[1], *hidden), (*hidden, 2), strict=True):
        weight = torch.randn(members, n_in, n_out, generator=seeded) * (2 / n_in) ** 0.5
        layers.append((weight.requires_grad_(), torch.zeros(members, 1, n_out, requires_grad=True)))
    decay = min(10.0, weight_decay / len(labels))  # at lr 1e-2, 10 is a tenth a step
    groups: list[dict[str, Any]] = [
        {"params": [w for w, _ in layers], "weight_decay": decay},
        {"params": [b for _, b in layers]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    own = torch.randint(len(x), (members, len(x)), generator=seeded)
    for _ in range(steps):
        rows = own.gather(1, torch.randint(len(x), (members, batch), generator=seeded))  # [M, B]
        p, t = _forward(layers, x[rows]), y[rows]
        better = torch.sigmoid(t - t.roll(1, 1))  # than the one before it in the batch
        pairwise = F.binary_cross_entropy_with_logits(p - p.roll(1, 1), better)
        loss = (p - t).square().mean() + rank * pairwise
        optimizer.zero_grad()
        (members * loss).backward()  # the gradients of each member's own mean
        optimizer.step()
        schedule.step()
    return Predictor(space, [(w.detach(), b.detach()) for w, b in layers], centre, scale, labels.weights_sha256)


# -- how good it is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """The error of one predicted accuracy on unseen labels; None where undefined.

    Attributes:
        tau: Kendall's rank correlation. The noise of the labels keeps it below 1.
        mae, bias: mean of the absolute and of the signed error (predicted - measured).
        spread: correlation of the members' spread with the absolute error.
        coverage: share of errors within two standard deviations, of members and label noise together.
    """

    tau: float | None
    mae: float
    bias: float
    spread: float | None
    coverage: float


@dataclass(frozen=True)
class Scores:
    """The errors of a predictor on ``n`` unseen sub-nets."""

    n: int
    clean: Score
    robust: Score


def score(predictor: Predictor, labels: Labels) -> Scores:
    """The errors of ``predictor`` on unseen ``labels``."""
    return _scores(labels, *predictor.predict(labels.genes))


def cross_validated(space: Space, labels: Labels, *, folds: int = 5, seed: int = 0, **settings: Any) -> Scores:
    """The errors of predictors that :func:`fit` makes with ``settings``, each on the fold that it has not seen.

    Raises:
        UsageError: there are fewer labels than folds.
    """
    if not 2 <= folds <= len(labels):
        raise UsageError(f"{len(labels)} labels cannot be divided into {folds} folds")
    mean, spread = np.empty((2, len(labels), 2))
    for unseen in np.array_split(np.random.default_rng(seed).permutation(len(labels)), folds):
        seen = np.setdiff1d(np.arange(len(labels)), unseen)
        mean[unseen], spread[unseen] = fit(space, labels[seen], seed=seed, **settings).predict(labels.genes[unseen])
    return _scores(labels, mean, spread)


def _scores(labels: Labels, mean: np.ndarray, spread: np.ndarray) -> Scores:
    columns = zip(labels.accuracy.T, labels.variance.T, mean.T, spread.T, strict=True)
    clean, robust = (_score(*column) for column in columns)
    return Scores(len(labels), clean, robust)


def _score(measured: np.ndarray, variance: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> Score:
    from scipy.stats import kendalltau

    error = mean - measured
    return Score(
        tau=float(kendalltau(mean, measured).statistic) if np.ptp(mean) and np.ptp(measured) else None,
        mae=float(abs(error).mean()),
        bias=float(error.mean()),
        spread=float(np.corrcoef(spread, abs(error))[0, 1]) if np.ptp(spread) and np.ptp(abs(error)) else None,
        coverage=float((abs(error) <= 2 * np.sqrt(spread**2 + variance)).mean()),
    )
