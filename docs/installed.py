"""What ``make quickstart`` and ``make test`` install, from the metadata of the environment that runs this."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
WITHOUT_THEIRS = ("litert-torch", "litert-converter", "xdsl")  # the Makefile installs these without requirements


def installed() -> dict[str, dict[str, int]]:
    """Bytes of every package on disk: of the quick start, and of what the tests add."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    quick = sizes(project["dependencies"])
    tests = sizes([*project["dependencies"], *_of_extra("dev", extras), *WITHOUT_THEIRS])
    return {"quickstart": quick, "test": {name: size for name, size in tests.items() if name not in quick}}


def _of_extra(name: str, extras: dict[str, list[str]]) -> Iterator[str]:
    """The requirements of an extra; those that name extras of this package are spelled out."""
    for requirement in extras[name]:
        if own := re.fullmatch(r"robust-zoo\[(.*)\]", requirement):
            for other in own[1].split(","):
                yield from _of_extra(other, extras)
        else:
            yield requirement


def sizes(requirements: Iterable[str]) -> dict[str, int]:
    """Bytes of the packages that the requirements name, and of all that these require, the largest first."""
    found: dict[str, int] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(_that_apply(requirements, ()))
    while todo:
        wanted = todo.pop()
        key = (re.sub(r"[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = distribution(wanted.name)
        except PackageNotFoundError:  # of another platform
            continue
        found[key[0]] = _size(package)
        if key[0] not in WITHOUT_THEIRS:
            todo += _that_apply(package.requires or (), wanted.extras)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _that_apply(requirements: Iterable[str], extras: Iterable[str]) -> Iterator[Requirement]:
    """Those that hold on this machine, of a package that is asked for with ``extras``."""
    for one in map(Requirement, requirements):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def _size(package: Distribution) -> int:
    paths = (Path(str(file.locate())) for file in package.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")


def table(found: dict[str, Any]) -> str:
    """Packages and megabytes of each command, by what they are for."""
    groups = {
        "NVIDIA's libraries and Triton, which PyTorch requires on Linux": r"nvidia-.*|triton|cuda-.*",
        "PyTorch, torchvision": r"torch|torchvision",
        "ONNX Runtime, onnx, onnxscript": r"onnx.*|flatbuffers|ml-dtypes|protobuf",
        "parquet and images: pyarrow, pillow": r"pyarrow|pillow",
        "training: pymoo, SciPy, TensorBoard, Accelerate": "pymoo|scipy|tensorboard.*|accelerate|matplotlib|fonttools|"
        "grpcio|kiwisolver|contourpy|moocore|cma|autograd|absl-py|werkzeug|markdown|alive-progress|psutil",
        "NumPy, SymPy, and small ones": ".*",
    }
    lines = ["| command | packages | what | MB |", "| --- | ---: | --- | ---: |"]
    left = dict(found["quickstart"])
    for what, pattern in groups.items():
        own = [name for name in left if re.fullmatch(pattern, name)]
        lines.append(f"| `make quickstart` | {len(own)} | {what} | {sum(left.pop(one) for one in own) / 1e6:,.0f} |")
    quick, test = (found[command] for command in ("quickstart", "test"))
    largest = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in list(test.items())[:6])
    lines.append(f"| | **{len(quick)}** | **in all** | **{sum(quick.values()) / 1e6:,.0f}** |")
    lines.append(f"| `make test`, besides | **{len(test)}** | {largest}, ... | **{sum(test.values()) / 1e6:,.0f}** |")
    return "\n".join(lines)
