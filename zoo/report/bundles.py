"""The bundles of a site: read, checked byte by byte, and put beside the models that they were made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zoo.export.bench.times import REPORT, Bench
from zoo.export.bundle.claims import check_claims
from zoo.export.bundle.folder import MANIFEST, SIGNATURE, read_bundle
from zoo.export.bundle.manifest import Manifest, Rung, read_report
from zoo.export.ladder.gate import CORRUPTIONS
from zoo.registry.entry import Entry, Registry
from zoo.registry.file import entry_called
from zoo.system.errors import UsageError


@dataclass(frozen=True)
class Shown:
    """A bundle as the site shows it; ``model`` is the registry's entry of its weights, None if it has none."""

    title: str  # of its folder
    manifest: Manifest
    model: Entry | None
    bench: Bench | None
    signed: bool

    @property
    def precision(self) -> str:
        return self.manifest.artifact.precision

    @property
    def last(self) -> Rung | None:
        """The highest rung that compared accuracies, which is under attack if any was; None where none did."""
        compared = [rung for rung in self.manifest.gates if "engine" in rung.measured and rung.name != CORRUPTIONS]
        return compared[-1] if compared else None

    @property
    def attacked(self) -> bool:
        return self.last is not None and bool(self.last.protocols)

    @property
    def kept(self) -> float | None:
        """The share of its float twin's accuracy under attack that the engine keeps; None if it was not attacked, or
        the twin has none."""
        if not self.attacked or self.last is None or not self.last.measured["twin"]["accuracy"]:
            return None
        return self.last.measured["engine"]["accuracy"] / self.last.measured["twin"]["accuracy"]


def read_bundles(places: Iterable[Path | str], registry: Registry) -> list[Shown]:
    """The bundles at ``places``, each a bundle or a folder of bundles, by name; each once.

    Raises:
        UsageError: there is none at a place.
        IntegrityError: one was altered or damaged, or contradicts itself or the registry.
    """
    folders = {folder.resolve(): folder for place in places for folder in _found(Path(place))}
    return sorted((_read(folder, registry) for folder in folders.values()), key=_order)


def _found(place: Path) -> list[Path]:
    if (place / MANIFEST).is_file():
        return [place]
    found = sorted(path.parent for path in place.glob(f"*/{MANIFEST}")) if place.is_dir() else []
    found = [folder for folder in found if not folder.name.startswith(".")]  # scratch folders of exports
    if not found:
        raise UsageError(f"'{place}' is neither a bundle nor a folder of bundles: export one with 'zoo export NAME'")
    return found


def _read(folder: Path, registry: Registry) -> Shown:
    manifest = read_bundle(folder)
    check_claims(folder, manifest, registry)
    entry = None if manifest.source.twin else entry_called(manifest.source.name, registry=registry)
    bench = read_report(folder / REPORT, Bench) if (folder / REPORT).is_file() else None
    return Shown(folder.absolute().name, manifest, entry, bench, signed=(folder / SIGNATURE).is_file())


def _order(shown: Shown) -> tuple[str, str, str, str]:
    return shown.manifest.name, shown.manifest.engine, shown.precision, shown.title
