"""What measured a number: versions and the processor, stored with every result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zoo.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxruntime")


def toolchain(*more: str) -> dict[str, str]:
    """Versions of what takes part in a measurement, the processor and its cores; nothing is imported.

    Args:
        more: packages that take part besides :data:`PACKAGES`.
    """
    found = {"robust-zoo": __version__, "python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "cpu": cpu_model(), "cores": str(os.cpu_count()), "os": platform.system()}


def cpu_model() -> str:
    """The processor's name where the system has one, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
