"""Training methods, one file each: the attack and the loss of a step."""

from __future__ import annotations

from zoo.train.methods.ard import Ard
from zoo.train.methods.mart import Mart
from zoo.train.methods.method import Method
from zoo.train.methods.n_fgsm import NFgsm
from zoo.train.methods.natural import Natural
from zoo.train.methods.pgd_at import PgdAT
from zoo.train.methods.rnascl import RnasCL
from zoo.train.methods.rslad import Rslad
from zoo.train.methods.trades import Trades

TABLE: tuple[type[Method], ...] = (
    Natural,
    PgdAT,
    NFgsm,
    Trades,
    Mart,
    Ard,
    Rslad,
    RnasCL,
)
METHODS: dict[str, type[Method]] = {method.model_fields["name"].default: method for method in TABLE}
