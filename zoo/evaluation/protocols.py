"""Named evaluation protocols: immutable records of how an accuracy was attacked. Nothing here imports torch.

EPS is 8/255 in pixel space on [0, 1] inputs. A protocol's ``n`` is the number of leading images of the split.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from zoo.system.errors import UsageError, nearest

EPS = 8 / 255
STEP = 2 / 255


class Protocol(BaseModel):
    """One way to attack, completely specified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    attack: str = Field(pattern=r"^[a-z0-9-]+$", description="a name of zoo.attacks.ATTACKS, or none")
    dataset: str = "cifar10"
    split: Literal["test", "validation"] = "test"
    n: int = Field(10_000, ge=1)
    norm: Literal["linf", "l2"] = "linf"
    eps: float = Field(EPS, ge=0)
    step: float | None = None
    steps: int | None = None
    restarts: int = Field(1, ge=1)
    loss: Literal["ce", "cw", "dlr"] | None = None
    queries: int | None = None
    seed: int = 0


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

RELEASED = tuple(PROTOCOLS)  # what every released model is measured with


def protocol(name: str) -> Protocol:
    """The protocol called ``name``.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol is called '{name}'{nearest(name, PROTOCOLS)} (known: {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]
