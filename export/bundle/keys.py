"""Keys for signatures: EC keys on the curve P-256, in PEM files as openssl writes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from zoo.system.arguments import typed
from zoo.system.errors import MissingDependency, UsageError
from zoo.system.files import kind_of

PASSPHRASE = "ZOO_KEY_PASSPHRASE"  # the environment variable with the passphrase of an encrypted key


@dataclass(frozen=True)
class SigningKey:
    """A private key: ``sign`` takes a message and returns its signature."""

    fingerprint: str
    sign: Callable[[bytes], bytes] = field(repr=False)


@dataclass(frozen=True)
class TrustedKey:
    """A public key: ``verifies`` takes a signature and a message, and returns whether the signature is valid."""

    fingerprint: str
    verifies: Callable[[bytes, bytes], bool] = field(repr=False)


def signing_key(key: SigningKey | Path | str, ask: Callable[[str], str] | None = None) -> SigningKey:
    """The private key in the file ``key``.

    Args:
        ask: takes a prompt and returns the passphrase of an encrypted key, if :data:`PASSPHRASE` is not set.

    Raises:
        UsageError: there is no such file, it is not a private EC key on P-256 in PEM, others than its owner can read
            it, or it is encrypted and the passphrase is missing or wrong.
        MissingDependency: the extra ``sign`` is not installed.
    """
    if isinstance(key, SigningKey):
        return key
    path = Path(key)
    pem = _pem(path)
    if b"PUBLIC KEY-----" in pem:
        raise UsageError(f"'{path}' is a public key: sign with the private one")
    if os.name != "nt" and path.stat().st_mode & 0o077:
        raise UsageError(f"the key '{path}' can be read by others than its owner: run 'chmod 600 {path}'")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = _loaded(path, "private", lambda: load_pem_private_key(pem, None))
    except TypeError:  # the key is encrypted
        phrase = os.environ.get(PASSPHRASE) or (ask(f"passphrase of '{path}': ") if ask else "")
        if not phrase:
            raise UsageError(f"the key '{path}' is encrypted: set {PASSPHRASE} to its passphrase") from None
        try:
            private = load_pem_private_key(pem, os.fsencode(phrase))
        except ValueError:
            raise UsageError(f"the passphrase does not open the key '{path}'") from None
    public = _on_p256(path, "private", private).public_key()
    return SigningKey(_fingerprint(public), lambda message: private.sign(message, ec.ECDSA(SHA256())))


def trusted_keys(trust: Sequence[Path | str] | Path | str) -> tuple[TrustedKey, ...]:
    """The public keys in these files.

    Raises:
        UsageError: no file is named, one is missing, or is not a public EC key on P-256 in PEM.
        MissingDependency: the extra ``sign`` is not installed.
    """
    typed(trust=(trust, str | PathLike | Sequence))
    paths = [trust] if isinstance(trust, str | PathLike) else list(trust)
    for path in paths:
        typed(trust=(path, str | PathLike))
    if not paths:
        raise UsageError("trust names no key: name the public key of a signer, or leave it out")
    return tuple(_trusted(Path(path)) for path in paths)


def _trusted(path: Path) -> TrustedKey:
    pem = _pem(path)
    if b"PRIVATE KEY-----" in pem:
        raise UsageError(
            f"'{path}' is a private key: trust the public one ('openssl pkey -in {path} -pubout' prints it)"
        )
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = _on_p256(path, "public", _loaded(path, "public", lambda: load_pem_public_key(pem)))

    def verifies(signature: bytes, message: bytes) -> bool:
        try:
            public.verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    return TrustedKey(_fingerprint(public), verifies)


def _pem(path: Path) -> bytes:
    if find_spec("cryptography") is None:
        raise MissingDependency("signatures need the package cryptography: run 'pip install \"robust-zoo[sign]\"'")
    if kind := kind_of(path):
        raise UsageError(f"'{path}' is {kind}, not a key: name a PEM file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the key '{path}' cannot be read: {error.strerror}") from None


def _loaded(path: Path, kind: str, load: Callable[[], Any]) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load()
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"'{path}' holds no {kind} key in PEM: name an EC key on the curve P-256") from None


def _on_p256(path: Path, kind: str, key: Any) -> Any:
    curve = getattr(getattr(key, "curve", None), "name", "")
    if curve != "secp256r1":
        raise UsageError(f"'{path}' is another kind of {kind} key: name an EC key on the curve P-256")
    return key


def _fingerprint(public: Any) -> str:
    """SHA-256 of the public key in PEM, as signatures name it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
