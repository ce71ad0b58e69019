"""Export a model to an engine, and show that the engine is as robust as the model.

Names are imported when they are first used: the table of engines is read without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.export.bundle.folder import read_bundle
    from zoo.export.exporter import export_model
    from zoo.export.ladder.gate import sign_off
    from zoo.export.verify import verify_bundle

__all__ = ["export_model", "read_bundle", "sign_off", "verify_bundle"]

_MODULES = {
    "export_model": "exporter",
    "read_bundle": "bundle.folder",
    "sign_off": "ladder.gate",
    "verify_bundle": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'zoo.export' has no attribute '{name}'")
    return getattr(import_module(f"zoo.export.{_MODULES[name]}"), name)
