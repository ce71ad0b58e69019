"""What an export is asked for: what to build, how to sign it off, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

from zoo.export.bundle.keys import SigningKey, signing_key
from zoo.export.bundle.manifest import PRECISIONS, Precision, level_called
from zoo.export.engines import Backend, backend
from zoo.export.engines.options import options_of
from zoo.export.ladder.terms import Terms
from zoo.export.onnx.calibration import Sampling
from zoo.system.arguments import typed
from zoo.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export. They are checked when they are made, before a model or an image is loaded.

    Attributes:
        out: the folder that gets the bundle ``<name>--<engine>-<precision>[--<device>]``.
        format: an engine or one of its aliases, see :mod:`zoo.export.engines`.
        precision: ``fp32``, ``fp16`` or ``int8``.
        calibration: how the images for int8 are chosen; they come from the training split.
        keep_robust: the accuracy under attack that an int8 graph may lose on held-out training images, as a share; as
            few layers as that takes stay in float, see :mod:`zoo.export.mixed`. None: every layer is in int8.
        portable_int8: int8 weights in 7 bits, so that the answers do not depend on the processor's instructions.
        batches: batch sizes to be used; parity is checked at these, at 1 and at 2.
        uint8: add ``model-uint8.onnx``, the same graph for uint8 images [N, H, W, 3], see :mod:`zoo.export.onnx.uint8`.
        engine_options: of this engine alone, see :mod:`zoo.export.engines.options`.
        verify: how high to climb: ``none``, ``parity``, ``clean`` or ``attacked``; None: as high as the data allow.
        margin, min_robust, tolerance, n, seed, queries, corruptions: the terms of the sign-off, see
            :class:`zoo.export.ladder.terms.Terms`; where they are None, they are as usual for the precision.
        data: where the model's data set is, see :mod:`zoo.datasets`; ``offline``: never use the network.
        force: replace a bundle that is there.
        keep_failed: leave a bundle that failed a gate under ``<bundle>.failed``.
        sign: sign the bundle with the private key in this file, see :mod:`zoo.export.bundle.keys`; the passphrase of an
            encrypted key is in the environment variable ``ZOO_KEY_PASSPHRASE``.
        command: recorded in the manifest; made up from the other options if None.

    Raises:
        UsageError: an option is not as it must be, or the engine has none such.
        MissingDependency: the engine is not in this release, or the extra ``sign`` is not installed.
    """

    out: Path | str
    format: str = "onnx"
    precision: Precision = "fp32"
    calibration: Sampling | None = None
    keep_robust: float | None = None
    portable_int8: bool = False
    batches: Sequence[int] = (1, 8, 64)
    uint8: bool = False
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    verify: str | None = None
    margin: float | None = None
    min_robust: float | None = None
    tolerance: float | None = None
    n: int | None = None
    seed: int | None = None
    queries: int | None = None
    corruptions: Sequence[str] | None = None
    data: Path | str | None = None
    offline: bool = False
    force: bool = False
    keep_failed: bool = False
    sign: SigningKey | Path | str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        place = str | PathLike
        typed(
            **{name: (getattr(self, name), str) for name in ("format", "precision")},
            **{name: (getattr(self, name), str | None) for name in ("verify", "command")},
            **{"out": (self.out, place), "data": (self.data, place | None)},
            calibration=(self.calibration, Sampling | None),
            sign=(self.sign, SigningKey | place | None),
            keep_robust=(self.keep_robust, Real | None),
            engine_options=(self.engine_options, Mapping | None),
        )
        engine, precision = self.engine, self.precision
        if precision not in PRECISIONS:
            raise UsageError(f"a precision is one of {', '.join(PRECISIONS)}, not '{precision}'")
        if precision not in engine.precisions:
            raise UsageError(f"{engine.name} engines are {', '.join(engine.precisions)} here, not {precision}")
        sizes = self.batches if isinstance(self.batches, Sequence) and not isinstance(self.batches, bytes) else ()
        if not sizes or not all(isinstance(size, int) and 1 <= size <= 4096 for size in sizes):
            raise UsageError(f"batch sizes are a sequence of whole numbers from 1 to 4096, not {self.batches!r}")
        if self.calibration is not None and precision != "int8":
            raise UsageError(f"{precision} needs no calibration: leave it out, or ask for int8")
        if (sampling := self.sampling) is not None and sampling.method not in engine.calibrators:
            known = ", ".join(engine.calibrators)
            raise UsageError(f"int8 ranges of {engine.name} are chosen by {known} here, not by {sampling.method}")
        if self.keep_robust is not None or self.portable_int8:
            if precision != "int8":
                raise UsageError(f"keep_robust and portable_int8 are for int8 graphs, not for {precision}")
            if not engine.from_onnx:
                raise UsageError(f"{engine.name} has a quantiser of its own, without keep_robust and portable_int8")
        if self.keep_robust is not None and not 0 <= self.keep_robust < 1:
            raise UsageError(
                f"what may be lost is a share from 0 to 1 (0.005 is half a point), not {self.keep_robust:g}"
            )
        self.terms.level(level_called(self.verify))  # terms are checked as they are made
        options_of(engine, self.engine_options)
        if self.sign is not None:  # read once: the file may be gone when the key is needed
            object.__setattr__(self, "sign", signing_key(self.sign))

    @property
    def engine(self) -> Backend:
        return backend(self.format)

    @property
    def obstacle(self) -> str | None:
        """Why what is built cannot run on this machine, as a clause; None where it can.

        Raises:
            MissingDependency: the engine is not installed.
            UsageError: the engine cannot be built so.
        """
        if not self.engine.ahead:
            return None
        module, own = self.engine.load_module(), options_of(self.engine, self.engine_options)
        return module.obstacle(module.needs(self.precision, own))

    @property
    def sampling(self) -> Sampling | None:
        """How calibration images are chosen; None where the precision needs none."""
        if self.precision != "int8":
            return None
        sampling = self.calibration or Sampling()
        return replace(sampling, method=sampling.method or self.engine.calibrators[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes in ascending order, each once."""
        return tuple(sorted(set(self.batches)))

    @property
    def terms(self) -> Terms:
        given = {key: getattr(self, key) for key in Terms.__dataclass_fields__}
        return Terms.of(self.precision, **given)

    def folder(self, title: str) -> Path:
        """Where the bundle of a model that is called ``title`` goes; options for one device are in its name."""
        device = getattr(options_of(self.engine, self.engine_options), "device", None)
        return Path(self.out) / "--".join(filter(None, (title, f"{self.engine.name}-{self.precision}", device)))
