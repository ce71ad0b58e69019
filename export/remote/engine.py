"""An engine on another machine: gradients are computed here, the artifact runs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from zoo.export.bundle.folder import artifact_sha256, read_bundle
from zoo.export.bundle.manifest import Manifest
from zoo.export.engines import ENGINES, Backend, backend
from zoo.export.engines.built_for import misfits
from zoo.export.engines.interface import Engine, check_threads
from zoo.export.engines.options import reloading
from zoo.export.gradients import artifact_gradients
from zoo.export.gradients.onnx import own_gradients
from zoo.export.onnx.graph import GRAPH
from zoo.export.remote import frame
from zoo.export.remote.link import Dropped, Link, Target, target_of
from zoo.models import Classifier
from zoo.system.errors import IntegrityError, MissingDependency, Unreachable, WrongDevice
from zoo.system.files import sha256_file

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new connection
LASTING = ("machine", "board", "cpu", "isa", "cores", "gpu", "runtime", "version", "device")  # facts that do not change

T = TypeVar("T")


def connect(
    target: str | Target,
    bundle: Path | str,
    *,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    ssh: Sequence[str] = ("ssh",),
    pauses: Sequence[float] = PAUSES,
    timeout: float = 600,
) -> Remote:
    """An engine that runs the bundle's artifact on another machine; use it in a ``with`` block.

    Args:
        target: ``ssh://[user@]host[:port][/path/to/python]`` or ``local:[path/to/python]``.
        threads: CPU threads of one call there; if None as in ``options``, else all its cores.
        options: for ``load`` of the engine, see :mod:`zoo.export.engines.options`; those of the export if None.
        ssh: the ssh command, with its options.
        pauses: seconds to wait before each attempt to connect again.
        timeout: seconds that one answer may take.

    Raises:
        UsageError: no such target, or no bundle.
        IntegrityError: a file of the bundle is altered, or the device runs other bytes.
        Unreachable: the device does not answer.
        MissingDependency: it lacks Python, numpy or the runtime, or there is no runner for this artifact.
        WrongDevice: the artifact was built for another, or the runtime there cannot load it.
    """
    if isinstance(target, str):
        target = target_of(target, ssh=tuple(ssh))
    check_threads(threads)
    manifest = read_bundle(bundle)
    return Remote(target, Path(bundle), manifest, threads=threads, options=options, pauses=pauses, timeout=timeout)


def runner_of(file_format: str) -> Backend:
    """The engine whose runtime runs such artifacts on another device.

    Raises:
        MissingDependency: there is no runner for files of this format.
    """
    runners = {one.file_format: one for one in ENGINES if one.travels}
    if file_format not in runners:
        raise MissingDependency(
            f"the runner for other devices has {', '.join(runners)}, not '{file_format}': install this "
            f"package on the device and verify the bundle there"
        )
    return runners[file_format]


class Remote(Engine):
    """A runner on a device; see :func:`connect`.

    After a dropped connection it connects again and repeats the batch in flight; it sends no file that the device has.
    """

    def __init__(
        self,
        target: Target,
        bundle: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        options: Mapping[str, Any] | None = None,
        pauses: Sequence[float] = PAUSES,
        timeout: float = 600,
    ) -> None:
        _, *shape = manifest.io.input.shape
        channels, height, width = map(int, shape)
        self.facts: dict[str, Any] = {}
        super().__init__(self._forward, (channels, height, width), self.facts)
        self.classes = int(manifest.io.output.shape[1])
        artifact = manifest.artifact
        self.runner = runner_of(artifact.format)
        self.options = dict(reloading(backend(manifest.engine), artifact.options, {}) if options is None else options)
        recorded = self.options.pop("threads", None)
        self.target, self.bundle, self.threads = target, bundle, threads or recorded
        self.engine, self.artifact = manifest.engine, artifact
        self.pauses, self.timeout = tuple(pauses), timeout
        parts = (artifact.file, *artifact.companions)
        self.digests = {name: sha256_file(bundle / name) for name in parts}
        if artifact_sha256(self.digests, parts) != artifact.sha256:
            raise IntegrityError(f"'{bundle / artifact.file}' was altered after it was checked: do not use it")
        self.link: Link | None = None
        self.met = False  # whether a frame ever came from there
        self.asked = 0
        self._persist(self._connected)

    def _forward(self, x: np.ndarray) -> np.ndarray:
        """One batch; beyond what every engine raises:

        Raises:
            UsageError: over 1 GiB of images.
            Unreachable: the connection was lost, and new ones failed.
            WrongDevice: the runtime there fails on the batch.
            IntegrityError: the answer does not belong to this batch.
        """
        self.asked += 1
        head, batch = {"id": self.asked, "shape": list(x.shape)}, np.asarray(x, "<f4").tobytes()
        kind, facts, payload = self._persist(lambda: self._connected().ask(frame.INFER, head, batch))
        expected = {"id": self.asked, "shape": [len(x), self.classes]}
        if kind != frame.LOGITS or facts != expected or len(payload) != 4 * len(x) * self.classes:
            raise IntegrityError(f"'{self.target.name}' answers with {facts}, not with logits {expected}")
        return np.frombuffer(payload, "<f4").reshape(len(x), self.classes)

    def time(self, batch: int, *, repeats: int, warmup: int = 10) -> np.ndarray:
        """Nanoseconds that each of ``repeats`` calls with ``batch`` images took there, int64; the pipe is not in it.

        Raises:
            UsageError: fewer than 1 repeat, or over 10,000 calls, or the engine is closed.
            Unreachable, WrongDevice: as for a call.
        """
        head = {"shape": [batch, *self.shape], "warmup": warmup, "repeats": repeats}
        kind, facts, _ = self._persist(lambda: self._connected().ask(frame.TIME, head))
        if kind != frame.TIMES or len(facts.get("ns", ())) != repeats:
            raise IntegrityError(f"'{self.target.name}' did not answer with {repeats} times")
        return np.array(facts["ns"], np.int64)

    def differentiable(self, model: Classifier) -> nn.Module | None:
        """``model`` with the weights of the bundle's graph if the artifact is made from it, else of the artifact."""
        if not self.runner.from_onnx:
            return artifact_gradients(self.runner.module, self.bundle / self.artifact.file, model)
        graph = self.bundle / GRAPH
        return own_gradients(graph, model) if graph.is_file() else None

    def describe(self) -> dict[str, Any]:
        """The runtime there, and the device as it describes itself; neither its address nor its user."""
        own = {"engine": self.engine, "version": self.facts["version"], "device": self.facts["device"]}
        return {**own, "remote": {name: fact for name, fact in self.facts.items() if name not in own}}

    def close(self) -> None:
        """End the runner. Closing twice does nothing."""
        super().close()
        if self.link is not None:
            self.link.close()
            self.link = None

    def _persist(self, work: Callable[[], T]) -> T:
        """The result of ``work``, repeated after each drop; a device that never answered is given up at once."""
        for pause in (*self.pauses, None):
            try:
                return work()
            except Dropped as error:
                self._abandon()
                if pause is None or not self.met:
                    tries = f", {len(self.pauses)} new connections did not help" if self.met else ""
                    raise Unreachable(f"no answer from '{self.target.name}'{tries}: {error}") from None
                time.sleep(pause)
            except BaseException:
                self._abandon()
                raise
        raise AssertionError("the last pause is None")

    def _abandon(self) -> None:
        if self.link is not None:
            self.met = self.met or self.link.noise is None
            self.link.close(kill=True)
            self.link = None

    def _connected(self) -> Link:
        """The link, with the artifact loaded at its other end; files that the device has are not sent."""
        self.running()
        if self.link is not None:
            return self.link
        self.link = Link(self.target, self.runner.module, timeout=self.timeout)
        wanted = {"threads": self.threads, "options": self.options, "files": self.digests}
        kind, answer, _ = self.link.ask(frame.OPEN, wanted)
        for name, digest in self.digests.items():
            if kind == frame.NEED and digest in answer.get("missing", ()):
                kind, answer, _ = self.link.ask(frame.FILE, {"sha256": digest}, (self.bundle / name).read_bytes())
        facts = answer.get("facts", {})
        if kind != frame.HELLO or answer.get("files") != self.digests or not {"version", "device"} <= facts.keys():
            raise IntegrityError(f"'{self.target.name}' does not run the artifact of '{self.bundle}'")
        self._recognise(facts)
        return self.link

    def _recognise(self, facts: dict[str, Any]) -> None:
        """Refuse a device that the artifact was not built for, and one that is not the device that answered before."""
        for name in misfits(self.artifact.built_for, facts):
            wanted, found = self.artifact.built_for[name], facts.get(name, "unknown")
            raise WrongDevice(
                f"'{self.bundle}' was built for {name} '{wanted}', on '{self.target.name}' it is '{found}': "
                "export it for that device"
            )
        for name in LASTING:
            if self.facts and facts.get(name) != self.facts.get(name):
                raise WrongDevice(
                    f"another device answers as '{self.target.name}' than before: {name} was "
                    f"'{self.facts.get(name)}', is '{facts.get(name)}'"
                )
        self.facts = facts
