"""The toolchain of a measurement: versions and the CPU, stored with every result."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import Distribution, PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from zoo.system.fingerprint import arithmetic, cpu_name
from zoo.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "onnx")
ONNXRUNTIME = "onnxruntime"  # the folder that onnxruntime, onnxruntime-gpu, onnxruntime-openvino ... all write into
# what a toolchain holds besides versions
MACHINE = ("cpu", "gpu", "machine", "isa", "int8", "cores", "os", "directions")


def toolchain(*more: str) -> dict[str, str]:
    """Versions of Python and packages, the CPU with its arithmetic, its cores and the system; no package is imported.

    Args:
        more: names of packages besides :data:`PACKAGES`.
    """
    versions = {"robust-zoo": __version__, "python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    versions |= writers()
    return {**versions, "cpu": cpu_name(), **arithmetic(), "cores": str(os.cpu_count()), "os": platform.system()}


def writers() -> dict[str, str]:
    """The installed packages whose files are in the folder that ``import onnxruntime`` reads, with their versions."""
    place = _place()
    if place is None:
        return {}
    # By the names of the folders: to read what each of hundreds of packages is called takes half a second.
    found = {one.name: one for one in map(Distribution.at, place.parent.glob(f"{ONNXRUNTIME}*-info"))}
    mark = (ONNXRUNTIME, "__init__.py")
    return {name: one.version for name, one in sorted(found.items()) if any(it.parts == mark for it in one.files or ())}


def clash() -> str | None:
    """A sentence if several packages write into the folder of ONNX Runtime: which one's files are there now, and what
    to do; None if all is well."""
    found, place = writers(), _place()
    if len(found) < 2 or place is None:
        return None
    try:
        note = (place / "capi" / "build_and_package_info.py").read_text(encoding="utf-8")
    except OSError:
        note = ""
    named = re.search(r"package_name = ['\"](.+?)['\"]", note)
    both = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{both} write into the same folder, and the files of {named[1] if named else 'neither'} are in force: run "
        f"'pip uninstall {' '.join(found)}', then install the one that you want (onnxruntime-gpu runs on CPUs too)"
    )


def _place() -> Path | None:
    """The folder that ``import onnxruntime`` reads, if there is one."""
    try:
        spec = find_spec(ONNXRUNTIME)
    except ValueError:  # something else stands under its name
        return None
    return Path(spec.origin).parent if spec and spec.origin else None
