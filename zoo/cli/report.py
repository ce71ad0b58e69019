"""``zoo report``: a static site to choose a model by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.options import AsJson, Quiet, RegistryFile
from zoo.cli.output import Output


def command(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the site goes.")] = Path("site"),
    registry: RegistryFile = None,
    bundles: Annotated[
        list[Path] | None, typer.Option("--bundles", metavar="DIR", help="A bundle, or a folder of them; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a site that is there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a static site from a registry and bundles: a table, a plot, a budget that picks, a page for each model.

    It needs neither a server nor a network: open DIR/index.html. Each bundle is
    checked byte by byte first; an altered one is refused (exit code 5). A folder
    that is not such a site is never replaced.

    \b
    Examples:
      zoo report
      zoo report --out site --bundles bundles --force
      zoo report --registry own/registry.json --out own/site
    """
    from zoo.report.site import write_site
    from zoo.system.units import format_size

    site = write_site(out, registry=registry, bundles=bundles or (), force=force)
    index = site.folder / "index.html"
    facts = {"index": str(index), "models": site.models, "bundles": site.bundles, "size": site.size}
    pages = f"{site.models:,} models and {site.bundles:,} bundles, {format_size(site.size)}"
    Output(as_json=as_json, quiet=quiet).result(facts, f"{index}\n{pages}")
