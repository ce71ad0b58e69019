"""Signatures of folders in the format of OpenSSF's model signing, version 1.0.

A signature is an in-toto statement with the hashes of the files, in a DSSE envelope, in a Sigstore bundle. It is made
with ``cryptography`` alone, and ``model_signing verify key`` takes it: the package ``model-signing`` 1.1 itself needs
Sigstore's client, 25 packages in all, in versions that cannot be installed beside LiteRT's converter.

Format: https://github.com/ossf/model-signing-spec; DSSE: https://github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.export.bundle.keys import SigningKey, TrustedKey
from zoo.system.errors import IntegrityError

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
PAYLOAD = "application/vnd.in-toto+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def signature(name: str, files: Mapping[str, str], key: SigningKey, *, ignored: Sequence[str]) -> str:
    """The signature by ``key`` of a folder with these files, as JSON.

    Args:
        name: of the folder; nothing depends on it.
        files: path to SHA-256.
        ignored: files that are not signed, such as the signature itself.
    """
    payload = json.dumps(_statement(name, files, ignored)).encode()
    signed = {"sig": b64encode(key.sign(_message(payload))).decode(), "keyid": ""}
    envelope = {"payload": b64encode(payload).decode(), "payloadType": PAYLOAD, "signatures": [signed]}
    material = {"publicKey": {"hint": key.fingerprint}, "tlogEntries": []}
    bundle = {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}
    return json.dumps(bundle, indent=2) + "\n"


def check_signature(path: Path, files: Mapping[str, str], keys: Sequence[TrustedKey]) -> None:
    """Check that the file ``path`` is a signature by one of ``keys`` of exactly these files, path to SHA-256.

    Raises:
        IntegrityError: it is missing, damaged, wrong or by another key, or files were changed, added or removed.
    """
    folder = path.parent
    if not path.is_file():
        raise IntegrityError(f"'{folder}' is not signed, and a signature by a trusted key is asked for: do not use it")
    try:
        bundle = json.loads(path.read_bytes())
        envelope, signer = bundle["dsseEnvelope"], bundle["verificationMaterial"]["publicKey"]["hint"]
        payload, signed = b64decode(envelope["payload"]), b64decode(envelope["signatures"][0]["sig"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise IntegrityError(f"'{path}' is not a signature: do not use '{folder}'") from None
    if not any(key.verifies(signed, _message(payload)) for key in keys):
        if signer in [key.fingerprint for key in keys]:
            raise IntegrityError(f"the signature '{path}' is wrong: do not use '{folder}'")
        raise IntegrityError(f"'{folder}' is signed by another key than those that are trusted: do not use it")
    found = _signed_files(path, payload)
    changed = {name for name in files.keys() & found.keys() if files[name] != found[name]}
    for trouble, names in (
        ("changed", changed),
        ("added", files.keys() - found.keys()),
        ("removed", found.keys() - files.keys()),
    ):
        if names:
            raise IntegrityError(
                f"'{folder}' was {trouble} after it was signed, at {', '.join(sorted(names))}: do not use it"
            )


def _signed_files(path: Path, payload: bytes) -> dict[str, str]:
    """The files that a statement of a trusted signer names."""
    try:
        statement = json.loads(payload)
        if (statement["_type"], statement["predicateType"]) == (STATEMENT, PREDICATE):
            return {one["name"]: one["digest"] for one in statement["predicate"]["resources"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise IntegrityError(f"'{path}' signs something else than the files of a folder: do not use it")


def _statement(name: str, files: Mapping[str, str], ignored: Sequence[str]) -> dict[str, Any]:
    resources = [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in sorted(files)]
    root = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [*ignored]}
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE,
        "predicate": {"serialization": serialization, "resources": resources},
    }


def _message(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of a payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
