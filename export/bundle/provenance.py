"""Signed bundles: a statement that binds the artifact to what it was made from and to its verdict, and a signature.

The statement, ``provenance.json``, is in-toto's: https://github.com/in-toto/attestation. It is a file like the others;
the signature, ``model.sig``, covers every file but itself and the list of sums, which anyone can make again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.export.bundle.folder import MANIFEST, SIGNATURE, SUMS, files, read_bundle, write_sums
from zoo.export.bundle.keys import SigningKey
from zoo.export.bundle.manifest import Manifest
from zoo.export.bundle.sbom import SBOM
from zoo.export.bundle.signature import STATEMENT, signature
from zoo.export.bundle.source import TWIN
from zoo.system.errors import IntegrityError

PROVENANCE = "provenance.json"
PREDICATE = "urn:robust-zoo:provenance:v1"
WRITTEN = {"model.onnx", "model-uint8.onnx", "README.md", MANIFEST, SBOM, TWIN}  # and the artifact, probe/, reports/


def sign_bundle(folder: Path, key: SigningKey, *, name: str | None = None) -> None:
    """Add statement and signature to the complete bundle in ``folder``, which is not signed.

    Args:
        name: what is signed is called so; by default as the folder.

    Raises:
        IntegrityError: the bundle was altered, or holds files that no export writes.
    """
    manifest = read_bundle(folder)
    written = {*WRITTEN, manifest.artifact.file, *manifest.artifact.companions}
    if others := [
        name for name in files(folder) if name not in written and not name.startswith(("probe/", "reports/"))
    ]:
        raise IntegrityError(f"the bundle holds '{others[0]}', which no export writes: remove it before you sign")
    text = json.dumps(statement(manifest, write_sums(folder)), indent=2, ensure_ascii=False) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8", newline="\n")
    sums = write_sums(folder)
    signed = signature(name or folder.resolve().name, sums, key, ignored=(SIGNATURE, SUMS))
    (folder / SIGNATURE).write_text(signed, encoding="utf-8", newline="\n")
    write_sums(folder, sums)


def remove_signature(folder: Path) -> None:
    """Remove what :func:`sign_bundle` added; the sums must be made again."""
    for name in (SIGNATURE, PROVENANCE):
        (folder / name).unlink(missing_ok=True)


def statement(manifest: Manifest, sums: Mapping[str, str]) -> dict[str, Any]:
    """The in-toto statement of a bundle: ``sums`` are the SHA-256 of its files."""
    said, artifact = manifest.model_dump(mode="json", exclude_none=True), manifest.artifact
    subject = (artifact.file, *artifact.companions, MANIFEST)
    protocols = [protocol for gate in said["gates"] for protocol in gate.pop("protocols")]
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sums[name]}} for name in subject],
        "predicateType": PREDICATE,
        "predicate": {
            "twin": said["source"],
            "dataset": manifest.dataset,
            "threat_model": said["threat_model"],
            "engine": {"name": manifest.engine, "device": manifest.device, "artifact": said["artifact"]},
            "toolchain": said["toolchain"],
            "calibration": said.get("calibration"),
            "protocols": [protocol for i, protocol in enumerate(protocols) if protocol not in protocols[:i]],
            "verdict": {key: said[key] for key in ("verified", "robustness", "gates")},
            "created": manifest.created,
        },
    }
