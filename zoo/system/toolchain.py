"""The toolchain of a measurement: versions and the CPU, stored with every result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zoo.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxruntime")
MACHINE = ("cpu", "cores", "os")  # what a toolchain holds besides versions


def toolchain(*more: str) -> dict[str, str]:
    """Versions of Python and packages, the CPU, its cores and the system; no package is imported.

    Args:
        more: names of packages besides :data:`PACKAGES`.
    """
    versions = {"robust-zoo": __version__, "python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**versions, "cpu": cpu_model(), "cores": str(os.cpu_count()), "os": platform.system()}


def cpu_model() -> str:
    """The CPU's name if the system states it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
