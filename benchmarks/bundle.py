"""Sign-off of an exported engine in fp32 and in int8, against the same ladder with nothing left out.

Both climb with the same images and seeds to the same bits. The report has the seconds of each rung.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from benchmarks.timing import interleaved, row
from zoo.attacks.guide import Guided
from zoo.export import export_model
from zoo.export.engines import onnxruntime
from zoo.export.ladder import climb, rungs, surrogate

MODEL, N = "nfgsm-w15", 1000
MARGIN = 0.5  # whatever is found


@contextmanager
def everything_twice() -> Iterator[None]:
    """Every attack takes every step on all images that either gets right, the twin answers apart from its gradients,
    Square attacks it wherever it is right and asks it about every candidate, and the engine answers one caller at a
    time, with threads that spin."""
    walk, box, replay = surrogate.surrogate_pgd, rungs.black_box, rungs.transfer

    def apart(gradients, engines, *given, **settings):
        return walk(gradients, [one.__call__ for one in engines], *given, **settings)

    def unscreened(twin, *given, **settings):
        return box(twin.exact if isinstance(twin, Guided) else twin, *given, **settings)

    def to_the_end(*given, **settings):
        return replay(*given, **settings | {"early_stop": False})

    with (
        patch.object(rungs, "transfer", to_the_end),
        patch.object(surrogate, "surrogate_pgd", apart),
        patch.object(rungs, "black_box", unscreened),
        patch.object(climb, "WIDE", float("inf")),
        patch.object(climb, "WIDE_FOR_WALKS", float("inf")),
        patch.object(climb, "WIDE_FOR_TARGETS", float("inf")),
        patch.object(onnxruntime, "PATIENT", {}),
    ):
        yield


def run() -> list[dict]:
    rows = []
    for precision in ("fp32", "int8"):
        found: dict = {}

        def signed_off(name: str, precision: str = precision, found: dict = found) -> None:
            with tempfile.TemporaryDirectory() as out:
                how = {"out": Path(out), "format": "onnx", "precision": precision, "verify": "attacked"}
                found[name] = export_model(MODEL, **how, n=N, margin=MARGIN).report.rungs

        def ours() -> None:
            signed_off("zoo")

        def in_full() -> None:
            with everything_twice():
                signed_off("nothing left out")

        with tempfile.TemporaryDirectory() as out:  # imports and caches
            export_model(MODEL, out=Path(out), format="onnx", precision=precision, verify="parity")
        seconds = interleaved({"zoo": ours, "nothing left out": in_full}, rounds=1, warmup=0)
        if found["zoo"][-1].bits != found["nothing left out"][-1].bits:
            raise SystemExit(f"the ladder found other bits in {precision}")
        result = row(f"signed off on {N} images, {MODEL} in {precision}, ONNX Runtime", "zoo", seconds)
        result["rungs"] = {who: {rung.name: rung.seconds for rung in climbed} for who, climbed in found.items()}
        rows.append(result)
    return rows
