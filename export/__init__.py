"""Export a model to an engine, and show that the engine is as robust as the model."""

from zoo.export.bundle.folder import read_bundle
from zoo.export.exporter import export_model
from zoo.export.ladder.gate import sign_off
from zoo.export.verify import verify_bundle

__all__ = ["export_model", "read_bundle", "sign_off", "verify_bundle"]
