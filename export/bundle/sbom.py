"""The bill of materials of a bundle: its artifact and the packages that made it, in CycloneDX 1.6.

The same export has the same one, apart from the time in it: https://cyclonedx.org/docs/1.6/json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_OID, uuid5

from zoo.export.bundle.manifest import Manifest
from zoo.system.toolchain import MACHINE

SBOM = "sbom.cdx.json"


def sbom(manifest: Manifest, sums: Mapping[str, str]) -> str:
    """The bill of materials as JSON.

    Args:
        sums: the SHA-256 of each file of the artifact.
    """
    packages = [_package(name, version) for name, version in manifest.toolchain.items() if name not in MACHINE]
    files = [
        {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": sha256}]}
        for name, sha256 in sums.items()
    ]
    model = {"type": "machine-learning-model", "bom-ref": "model", "name": manifest.name, "components": files}
    uses = {"ref": "model", "dependsOn": [package["bom-ref"] for package in packages]}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_OID, manifest.artifact.sha256)}",
        "version": 1,
        "metadata": {"timestamp": manifest.created, "component": model},
        "components": packages,
        "dependencies": [uses],
    }
    return json.dumps(bill, indent=2, ensure_ascii=False) + "\n"


def _package(name: str, version: str) -> dict[str, Any]:
    kind = "generic" if name == "python" else "pypi"
    purl = f"pkg:{kind}/{re.sub(r'[-_.]+', '-', name).lower()}@{quote(version, safe='')}"
    known = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    licences = _licences(name, version)
    return known | ({"licenses": licences} if licences else {})


def _licences(name: str, version: str) -> list[dict[str, Any]]:
    """What the package's metadata say: an SPDX expression, else names."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return []
    if about["Version"] != version:
        return []
    if "License-Expression" in about:
        return [{"expression": about["License-Expression"]}]
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    stated = [line for text in about.get_all("License", []) for line in text.splitlines() if line]
    names = classifiers or stated[:1]
    return [{"license": {"name": one}} for one in names]
