"""How a model is named: the one place that reads it. A kind of address more is added here, and found in ``load.py``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from zoo.system.errors import UsageError

NAME, LOCAL, HUB = "name", "local-dir", "hf-hub"
KINDS = "a name of the registry, local-dir:PATH or hf-hub:ORG/REPO[@REVISION]"


def has_scheme(text: str) -> bool:
    """Whether ``text`` names a model elsewhere than in the registry."""
    return text.partition(":")[0] in (LOCAL, HUB) and ":" in text


@dataclass(frozen=True)
class Address:
    """Where a model is: ``place`` is a name of the registry, a folder's path, or a repository of the Hub."""

    scheme: str
    place: str
    revision: str | None = None  # of a repository of the Hub

    @classmethod
    def parse(cls, text: str | Address, *, folders: bool = False) -> Address:
        """The address that ``text`` spells: a name, alias or ``SUPERNET@BUDGET`` of the registry, ``local-dir:PATH`` or
        ``hf-hub:org/repo[@revision]``.

        Args:
            folders: the path of a folder that exists is an address too, and comes before a name.

        Raises:
            UsageError: it is no text, has an unknown scheme, or nothing after the scheme.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            raise UsageError(f"a model's address is a text, {KINDS}, not {text!r}")
        scheme, colon, place = text.partition(":")
        if not colon:
            return cls(LOCAL if folders and Path(text).is_dir() else NAME, text)
        if scheme not in (LOCAL, HUB):
            raise UsageError(f"'{text}' begins with an unknown scheme, '{scheme}:': a model's address is {KINDS}")
        if not place:
            raise UsageError(f"'{text}' names no place: a model's address is {KINDS}")
        if scheme == LOCAL:
            return cls(LOCAL, str(Path(place).expanduser()))
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
            raise UsageError(f"'{self}' names a revision, and revision={revision!r} another: leave one of them out")
        return replace(self, revision=revision)

    def absolute(self) -> Address:
        """The address that names the same model from any working folder."""
        return replace(self, place=str(Path(self.place).resolve())) if self.scheme == LOCAL else self

    def __str__(self) -> str:
        scheme = "" if self.scheme == NAME else f"{self.scheme}:"
        return f"{scheme}{self.place}" + (f"@{self.revision}" if self.revision else "")
