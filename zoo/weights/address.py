"""Addresses of models, parsed only here. To add a kind of address, change this file and ``find`` in ``load.py``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.system.errors import UsageError
from zoo.system.files import encoded

NAME, LOCAL, HUB, OWN, FILE = "name", "local-dir", "hf-hub", "own", "file"
SCHEMES = (LOCAL, HUB)
FILES = (".onnx", ".pt2")
OWN_KIND = "package.module:function, FILE.onnx or FILE.pt2"
KEPT = "a registry name, local-dir:PATH or hf-hub:ORG/REPO[@REVISION]"
KINDS = f"{KEPT}; for zoo eval and zoo sweep also {OWN_KIND}"


def has_scheme(text: str) -> bool:
    """Whether ``text`` is the address of a model folder or of a repository of the Hub."""
    return text.partition(":")[0] in SCHEMES and ":" in text


@dataclass(frozen=True)
class Address:
    """The address of a model: ``place`` is a registry name, the path of a folder, a repository of the Hub,
    ``package.module:function``, or the path of a file."""

    scheme: str
    place: str
    revision: str | None = None  # only for the Hub

    @classmethod
    def parse(cls, text: str | Address, *, folders: bool = False) -> Address:
        """Parse ``text``: a name, alias or ``SUPERNET@BUDGET`` of the registry, ``local-dir:PATH`` or
        ``hf-hub:org/repo[@revision]``, ``package.module:function``, or the path of an ONNX graph (``.onnx``) or of an
        exported program (``.pt2``).

        Args:
            folders: accept paths too: what has a slash in it, a safetensors file, and an existing folder, in preference
                to a registry name.

        Raises:
            UsageError: ``text`` is not a string, is empty, has an unknown scheme, or nothing after the scheme.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            raise UsageError(f"a model's address must be a string, {KINDS}, not a value of type {type(text).__name__}")
        if not text:
            raise UsageError(f"a model's address must not be empty: it is {KINDS}")
        scheme, colon, place = text.partition(":")
        drive = len(scheme) == 1  # of Windows
        if (not colon or drive) and Path(text).suffix.lower() in FILES and not (folders and Path(text).is_dir()):
            return cls(FILE, _path(text))
        if not colon:
            local = folders and ("/" in text or os.sep in text or text.endswith(".safetensors") or Path(text).is_dir())
            return cls(LOCAL if local else NAME, text)
        if scheme not in SCHEMES:
            if place.isidentifier() and all(part.isidentifier() for part in scheme.split(".")):
                return cls(OWN, text)
            raise UsageError(f"'{text}' has the unknown scheme '{scheme}:': a model's address is {KINDS}")
        if not place:
            raise UsageError(f"'{text}' has nothing after its scheme: a model's address is {KINDS}")
        if scheme == LOCAL:
            return cls(LOCAL, _path(place))
        repo_id, _, revision = place.partition("@")
        return cls(HUB, repo_id, revision or None)

    def at(self, revision: str | None) -> Address:
        """The same repository of the Hub at ``revision``; None leaves the address as it is.

        Raises:
            UsageError: the model is not on the Hub, or the address has a revision already.
        """
        if revision is None:
            return self
        if self.scheme != HUB:
            raise UsageError(f"'{self}' has no revisions: only hf-hub: addresses take one")
        if self.revision:
            raise UsageError(f"'{self}' already has a revision besides {revision!r}: leave one of them out")
        return replace(self, revision=revision)

    def absolute(self) -> Address:
        """The same address with an absolute path, valid in any working folder."""
        return replace(self, place=str(Path(self.place).resolve())) if self.scheme in (LOCAL, FILE) else self

    def __str__(self) -> str:
        scheme = "" if self.scheme in (NAME, OWN, FILE) else f"{self.scheme}:"
        return f"{scheme}{self.place}" + (f"@{self.revision}" if self.revision else "")


def _path(text: str) -> str:
    return str(Path(os.fsdecode(encoded(text))).expanduser())  # it may have been stored under another locale
