"""Write the site: every page from its template, the libraries once, all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from os.path import realpath
from pathlib import Path
from shutil import copytree

from zoo.export.bundle.folder import MANIFEST, SUMS, Kind, check_free, files, staged
from zoo.registry.file import load_registry, registry_path
from zoo.report.bundles import read_bundles
from zoo.report.libraries import libraries, require
from zoo.report.pages import pages
from zoo.system.errors import UsageError
from zoo.version import __version__

ASSETS = Path(__file__).with_name("assets")
MARK = "report.json"  # the list of the site's files, by which it is known as one
MADE_BY = "robust-zoo report"


@dataclass(frozen=True)
class Site:
    """A site that was just written; ``size`` in bytes."""

    folder: Path
    models: int
    bundles: int
    size: int


def write_site(
    out: Path | str,
    *,
    registry: Path | str | None = None,
    bundles: Iterable[Path | str] = (),
    force: bool = False,
) -> Site:
    """Write a static site about the models of a registry, and about bundles, to the folder ``out``.

    Args:
        registry: the file; None: as :func:`zoo.registry.file.load_registry` finds it.
        bundles: bundles, and folders of bundles.
        force: replace a site that is there; nothing else is ever replaced.

    Raises:
        MissingDependency: the extra ``report`` is not installed.
        UsageError: ``out`` exists and may not be replaced, or is in a bundle; a place holds no bundle; or the registry
            holds no model.
        IntegrityError: the registry or a bundle is damaged.
        ExportFailed: the operating system refused a write.
    """
    require()
    out = Path(out)
    check_free(out, force=force, kind=REPORT)
    for above in Path(realpath(out)).parents:
        if (above / MANIFEST).is_file() and (above / SUMS).is_file():
            raise UsageError(
                f"'{out}' is in the bundle '{above}', which must hold no other files: choose another folder"
            )
    known = load_registry(registry)
    if not known.models:
        raise UsageError(f"the registry '{registry_path(registry)}' holds no model yet: there is nothing to report")
    shown = read_bundles(bundles, known)
    with staged(out, force=force, kind=REPORT) as scratch:
        for folder in ("assets", "models", "bundles"):
            (scratch / folder).mkdir()
        for name, text in chain(_scripts(), pages(known, shown)):
            (scratch / name).write_text(text, encoding="utf-8", newline="\n")
        copytree(ASSETS, scratch / "assets", dirs_exist_ok=True)
        listed = {
            "made_by": MADE_BY,
            "version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files(scratch),
        }
        (scratch / MARK).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8", newline="\n")
        size = sum((scratch / name).stat().st_size for name in files(scratch))
    return Site(out, len(known.models), len(shown), size)


def _is_report(folder: Path) -> bool:
    """Whether ``folder`` holds a site and nothing else."""
    try:
        listed = json.loads((folder / MARK).read_bytes())
        return listed["made_by"] == MADE_BY and set(files(folder)) - {MARK} <= set(listed["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


REPORT = Kind("report", _is_report, "not a report, or holds other files too")


def _scripts() -> Iterator[tuple[str, str]]:
    return ((f"assets/{name}", script) for name, script in libraries().items())
