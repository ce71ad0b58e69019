"""Training methods, one file each: the attack and the loss of a step."""

from __future__ import annotations

from typing import get_args

from zoo.train.methods.adaad import AdaAD
from zoo.train.methods.ard import Ard
from zoo.train.methods.fast_ard import FastArd
from zoo.train.methods.fast_at import FastAT
from zoo.train.methods.free_at import FreeAT
from zoo.train.methods.kd import Kd
from zoo.train.methods.mart import Mart
from zoo.train.methods.method import Method
from zoo.train.methods.n_fgsm import NFgsm
from zoo.train.methods.natural import Natural
from zoo.train.methods.pgd_at import PgdAT
from zoo.train.methods.rdt import Rdt
from zoo.train.methods.rnascl import RnasCL
from zoo.train.methods.rrm import Rrm
from zoo.train.methods.rslad import Rslad
from zoo.train.methods.trades import Trades

TABLE: tuple[type[Method], ...] = (
    Natural,
    PgdAT,
    FastAT,
    FreeAT,
    NFgsm,
    Trades,
    Mart,
    Kd,
    Ard,
    FastArd,
    Rslad,
    AdaAD,
    Rrm,
    Rdt,
    RnasCL,
)


def by_name(table: tuple[type[Method], ...]) -> dict[str, type[Method]]:
    """The methods by name.

    Raises:
        TypeError: a method does not state its name as in ``name: Literal["trades"] = "trades"``, or another has it.
    """
    found: dict[str, type[Method]] = {}
    for method in table:
        name = method.model_fields["name"]
        if get_args(name.annotation) != (name.default,):
            raise TypeError(f'{method.__name__} must state its name as in name: Literal["trades"] = "trades"')
        if name.default in found:
            raise TypeError(f"two training methods are called '{name.default}'")
        found[name.default] = method
    return found


METHODS = by_name(TABLE)
