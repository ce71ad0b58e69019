"""Named evaluation protocols: immutable records of how accuracy is measured. Nothing here imports torch.

The named ones are for CIFAR-10 and the default threat model, l-infinity 8/255. Protocols for other data sets or threat
models are derived from them, and their names state the change: ``cifar100-pgd20``, ``pgd20-l2-0.5``. ``protocol``
knows all of them by name.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from zoo.datasets import DATASETS
from zoo.evaluation.threat import LINF_8, Norm, ThreatModel
from zoo.system.errors import UsageError, nearest

EPS = LINF_8.eps
STEP = EPS / 4
STATED = "-step"  # in the name of a protocol before its step, which no threat model changes
DATASET = "cifar10"
COMPUTED, CIFAR10_C = "corruptions", "cifar10-c"  # attacks of protocols whose images are corrupted, not attacked
CORRUPTED = (COMPUTED, CIFAR10_C)


class Protocol(BaseModel):
    """A completely specified attack; ``n`` is the number of leading images of the split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    attack: str = Field(
        pattern=r"^[a-z0-9-]+$", description="a name of zoo.attacks.ATTACKS, none, corruptions or cifar10-c"
    )
    dataset: str = DATASET
    split: Literal["test", "validation"] = "test"
    n: int = Field(10_000, ge=1)
    norm: Norm = "linf"
    eps: float = Field(EPS, ge=0)
    step: float | None = None
    steps: int | None = None
    restarts: int = Field(1, ge=1)
    loss: Literal["ce", "cw", "dlr"] | None = None
    queries: int | None = None
    seed: int = 0

    @property
    def attacked(self) -> bool:
        """Whether the worst image is looked for; not so without attack, in noise, or under corruptions."""
        return self.attack not in ("none", "uniform", *CORRUPTED)

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps)

    def on(self, dataset: str) -> Protocol:
        """This protocol on the data set ``dataset``.

        Raises:
            UsageError: its images are in the files of CIFAR-10-C, and ``dataset`` is another data set than CIFAR-10.
        """
        if dataset == self.dataset:
            return self
        if self.attack == CIFAR10_C:
            raise UsageError(f"'{self.name}' has the test images of CIFAR-10: on {dataset}, use '{COMPUTED}'")
        name = self.name.removeprefix(f"{self.dataset}-")
        name = name if dataset == DATASET else f"{dataset}-{name}"
        return self.model_copy(update={"name": name, "dataset": dataset})

    def under(self, threat: ThreatModel) -> Protocol:
        """This protocol with the norm and the eps of ``threat``; unchanged if it has no perturbation of that size.

        The step is proportional to eps: a fixed step would leave a small ball at once and not cross a large one. It
        stays the same share of the usual step, which is eps / 4 in l-infinity and 2.5 eps / steps in l2 (Madry et al.
        2018). A step that the name states stays as it is.

        Raises:
            UsageError: the name states a step, and ``threat`` is in another norm, or its ball too large for such steps.
        """
        if self.attack in ("none", *CORRUPTED) or threat == self.threat:
            return self
        reach = (self.step or 0.0) * (self.steps or 0)
        if STATED in self.name and (threat.norm != self.norm or threat.eps > reach * (1 + 1e-9)):
            raise UsageError(
                f"the steps of '{self.name}' are in {self.norm} and go {reach:g} far: "
                f"take another protocol for {threat}"
            )
        usual, new = (one.eps * (1 / 4 if one.norm == "linf" else 2.5 / (self.steps or 1)) for one in (self, threat))
        step = self.step if self.step is None or STATED in self.name else self.step / usual * new
        name = self.name.removesuffix(f"-{self.threat.slug}")
        name = name if threat == LINF_8 else f"{name}-{threat.slug}"
        return self.model_copy(update={"name": name, "norm": threat.norm, "eps": threat.eps, "step": step})


def _named(*protocols: Protocol) -> dict[str, Protocol]:
    return {protocol.name: protocol for protocol in protocols}


PROTOCOLS = _named(
    Protocol(name="clean", attack="none", eps=0.0),
    Protocol(name="noise", attack="uniform"),
    Protocol(name="fgsm", attack="fgsm", loss="ce"),
    Protocol(name="pgd20", attack="pgd", step=STEP, steps=20, loss="ce"),
    Protocol(name="mifgsm20", attack="mifgsm", step=STEP, steps=20, loss="ce"),
    Protocol(name="cw20", attack="pgd", step=STEP, steps=20, loss="cw"),
    Protocol(name="apgd50", attack="apgd", steps=50, loss="ce"),
    Protocol(name="autoattack", attack="autoattack", n=1000, steps=100, queries=5000),
)

RELEASED = tuple(PROTOCOLS)  # every released model is measured with these

PROTOCOLS |= _named(  # others, which papers report
    Protocol(name=f"pgd20{STATED}0.003", attack="pgd", step=0.003, steps=20, loss="ce"),  # RSLAD; TRADES: linf 0.031
    Protocol(name="pgd1000", attack="pgd", step=STEP, steps=1000, loss="ce"),  # ARD, Table 11
    Protocol(name="pgd20x100", attack="pgd", step=STEP, steps=20, restarts=100, loss="ce"),  # ARD, Table 11
    Protocol(name="deepfool", attack="deepfool", steps=50),  # ARD, Table 11
    Protocol(name="apgd50x10", attack="apgd", steps=50, restarts=10, loss="ce"),  # RRM, Tables 1 and 2
    Protocol(name="apgd20x5", attack="apgd", steps=20, restarts=5, loss="ce"),  # RRM, Tables 3 and 8
    Protocol(name="pgd20-t", attack="pgd-t", step=STEP, steps=20),  # near AutoAttack, in a fraction of its time
    Protocol(name="square", attack="square", n=1000, queries=5000),  # asks for answers alone
    Protocol(name="autoattack10k", attack="autoattack", steps=100, queries=5000),  # on the whole test split
    # Hendrycks and Dietterich 2019: every image in 15 kinds of corruption x 5 severities (zoo.evaluation.corruptions).
    Protocol(name=COMPUTED, attack=COMPUTED, eps=0.0),  # computed by a library, with the severities of ImageNet-C
    Protocol(name=CIFAR10_C, attack=CIFAR10_C, eps=0.0),  # the benchmark's own files
)


def dataset_of(name: str) -> str | None:
    """The data set that the name of a protocol begins with, such as ``cifar100-pgd20``; None if it states none."""
    known = [each for each in DATASETS if name.startswith(f"{each}-")]
    return None if name in PROTOCOLS else max(known, key=len, default=None)  # one may extend the name of another


def protocol(name: str, threat: ThreatModel | None = None) -> Protocol:
    """The protocol called ``name``: a named one, or one for another data set or threat model that is derived from it,
    such as ``pgd20-l2-0.5`` or ``cifar100-pgd20-linf-4-255``.

    >>> protocol("pgd20-l2-0.5").steps
    20

    Args:
        threat: the threat model, if ``name`` states none; by default l-infinity 8/255.

    Raises:
        UsageError: the name is unknown; the message suggests the nearest. Or the protocol has no form in that norm.
    """
    dataset, stated = dataset_of(name) or DATASET, threat or LINF_8
    base = name if name in PROTOCOLS else name.removeprefix(f"{dataset}-")
    if base not in PROTOCOLS and (suffix := re.fullmatch(r"(.+)-(linf|l2)-(?:([0-9]+)-255|([0-9.]+))", base)):
        base, norm, levels, eps = suffix.groups()
        if base in PROTOCOLS and PROTOCOLS[base].attack in CORRUPTED:
            raise UsageError(f"protocol '{base}' attacks nothing, so it has no threat model: leave it out of '{name}'")
        stated = ThreatModel.parse(f"{norm} {levels}/255" if levels else f"{norm} {eps}")
    if base not in PROTOCOLS:
        raise UsageError(
            f"no protocol is called '{name}'{nearest(base, PROTOCOLS)} (known: {', '.join(PROTOCOLS)}, and each under "
            "another threat model, as pgd20-l2-0.5)"
        )
    return PROTOCOLS[base].on(dataset).under(stated)
