"""``zoo doctor``: what is installed, which engines work, and whether data and models are in order."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from zoo.cli.options import AsJson, Quiet
from zoo.cli.output import Output


def command(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Show what is installed, which engines work, on which devices, and whether data and models are in order.

    Nothing is installed, downloaded or changed. Exits with 5 if the registry, a weights file or a cached data set is
    damaged.

    \b
    Examples:
      zoo doctor
      zoo doctor --json
    """
    from zoo.export.engines import ENGINES
    from zoo.system.errors import IntegrityError
    from zoo.system.toolchain import clash

    out = Output(as_json=as_json, quiet=quiet)
    out.say("looking ...")
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _packages()},
        "engines": {
            "torch": _engine("torch", lambda torch: ()),
            **{one.package: _engine(one.package, one.places) for one in ENGINES},
        },
        "clash": clash(),
        "devices": _devices(),
        "cache": _cache(),
        "data": _data(),
        "registry": _registry(),
    }
    out.result(report, lambda: _text(report))
    if report["registry"]["faults"] or report["data"]["damaged"]:
        raise typer.Exit(IntegrityError.exit_code)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> dict[str, str]:
    """The packages that all need, and those of engines, signatures and corruptions, with what they are for."""
    from zoo.evaluation.corruptions import PACKAGE
    from zoo.export.engines import ENGINES

    names = ("robust-zoo", "torch", "torchvision", "numpy", "safetensors", "huggingface_hub", "accelerate")
    needed = dict.fromkeys((*names, "onnx", "onnxscript", "onnxruntime"), "")
    needed |= {tool: f"for {engine.title}" for engine in ENGINES for tool in engine.tools}
    return needed | {"cryptography": "for signatures", PACKAGE: "for corruptions"}


def _engine(package: str, places: Callable[[Any], Sequence[str]]) -> dict[str, Any]:
    """Whether the engine's package imports, and what it runs on."""
    try:
        return {"works": True, "on": list(places(importlib.import_module(package)))}
    except ModuleNotFoundError as error:
        if error.name == package:
            return {"works": False, "why": "not installed"}
        return {"works": False, "why": f"its dependency {error.name} is not installed"}
    except Exception as error:  # a broken installation fails in ways of its own
        return {"works": False, "why": f"{type(error).__name__}: {error}".splitlines()[0]}


def _devices() -> dict[str, Any]:
    from zoo.system.fingerprint import cpu_name

    found: dict[str, Any] = {"cpu": cpu_name(), "cores": os.cpu_count(), "cuda": []}
    if _version("torch"):
        import torch

        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _cache() -> dict[str, Any]:
    from zoo.system.cache import cache_root
    from zoo.system.files import existing

    root = cache_root()
    files = [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
    return {
        "place": str(root),
        "exists": root.is_dir(),
        "bytes": sum(path.stat().st_size for path in files),
        "writable": os.access(existing(root), os.W_OK),
    }


def _data() -> dict[str, Any]:
    """What the variables of the data sets name, which are decoded in the cache, and files there that are damaged."""
    from zoo.datasets import DATASETS, cifar10_c
    from zoo.system.cache import MARK, cache_root, intact

    found: dict[str, Any] = {}
    for variable in dict.fromkeys([*(dataset.variable for dataset in DATASETS.values()), cifar10_c.VARIABLE]):
        given = os.environ.get(variable)
        found |= {variable: given, f"{variable}_is_folder": Path(given).is_dir() if given else None}
    folders = sorted(mark.parent for name in DATASETS for mark in cache_root().glob(f"{name}-*/{MARK}"))
    arrays = (path for folder in folders for path in _recorded(folder / MARK))
    damaged = [str(path) for path in arrays if not intact(path)]
    return found | {"cached": [folder.name for folder in folders], "damaged": damaged}


def _recorded(mark: Path) -> list[Path]:
    """The files in the record of a folder of the cache; the record itself if it is damaged."""
    import json

    try:
        return [mark.with_name(name) for name in json.loads(mark.read_bytes())]
    except (ValueError, TypeError):
        return [mark]


def _registry() -> dict[str, Any]:
    """The registry checked afresh, and every bundled weights file hashed."""
    from zoo.registry.file import load_registry, registry_path
    from zoo.registry.schema import check
    from zoo.system.errors import ZooError
    from zoo.system.files import read_utf8
    from zoo.weights.load import beside
    from zoo.weights.tensors import check_file

    path = registry_path()
    state: dict[str, Any] = {"place": str(path), "models": 0, "weights": {}, "faults": []}
    try:
        registry = load_registry(path)
        check(read_utf8(path), path)
    except ZooError as error:
        state["faults"].append(str(error))
        return state
    state["models"] = len(registry.models)
    for name, entry in registry.models.items():
        file = beside(entry.weights.file)
        if not file.exists():
            state["weights"][name] = "on the Hub" if entry.weights.hub else "missing"
            if not entry.weights.hub:
                state["faults"].append(f"the weights of {name} are missing: '{file}'")
            continue
        try:
            check_file(file, size=entry.weights.size, sha256=entry.weights.sha256)
            state["weights"][name] = "in order"
        except ZooError as error:
            state["weights"][name] = "damaged"
            state["faults"].append(str(error))
    return state


def _text(report: dict[str, Any]) -> str:
    from zoo.cli.output import table
    from zoo.cli.tables import wrapped
    from zoo.system.units import format_size

    uses = _packages()
    packages = [[name, found or "-", uses[name]] for name, found in report["packages"].items()]
    engines = [
        [name, "works" if state["works"] else "-", ", ".join(state["on"]) if state["works"] else state["why"]]
        for name, state in report["engines"].items()
    ]
    devices, cache, data, registry = (report[key] for key in ("devices", "cache", "data", "registry"))
    places = [
        f"{name} is {data[name] or 'not set'}" + (" (not a folder)" if data[f"{name}_is_folder"] is False else "")
        for name in data
        if f"{name}_is_folder" in data
    ]
    cached = f"cached: {', '.join(data['cached'])}" if data["cached"] else "nothing decoded in the cache"
    intact = sum(state == "in order" for state in registry["weights"].values())
    facts = {
        "CPU": f"{devices['cpu']}, {devices['cores']} cores",
        "CUDA": ", ".join(devices["cuda"]) or "no device",
        "cache": f"{cache['place']}, {format_size(cache['bytes'])}{'' if cache['writable'] else ', not writable'}",
        "data": "; ".join([*places, cached]),
        "registry": f"{registry['place']}: {registry['models']} models, {intact} bundled weights files in order",
    }
    lines = [
        f"Python {report['python']} on {report['platform']}",
        "",
        table(["package", "version", ""], packages, right=()),
    ]
    lines += ["", table(["engine", "state", "on"], engines, right=()), ""]
    lines += [*wrapped(f"CLASH: {report['clash']}"), ""] if report["clash"] else []
    for term, fact in facts.items():
        lines += wrapped(f"{term:10}{fact}", indent=" " * 10)
    faults = [
        *registry["faults"],
        *(f"'{path}' is damaged: it is made again when it is used" for path in data["damaged"]),
    ]
    lines += ["", *(f"FAULT: {fault}" for fault in faults)] if faults else []
    return "\n".join(lines)
