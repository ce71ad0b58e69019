"""``zoo list``: the models and what they cost and hold."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.options import AsJson, By, Family, MinClean, MinUnderAttack, Quiet, model_names
from zoo.cli.output import Output


def command(
    pattern: Annotated[str, typer.Argument(metavar="[GLOB]", help="Names to list.", autocompletion=model_names)] = "*",
    max_flops: Annotated[
        str | None, typer.Option("--max-flops", "--max-macs", metavar="COUNT", help="At most so many MACs, as 15M.")
    ] = None,
    max_params: Annotated[str | None, typer.Option(metavar="COUNT", help="At most so many parameters.")] = None,
    min_clean: MinClean = None,
    min_robust: MinUnderAttack = None,
    family: Family = None,
    by: By = "pgd20",
    front: Annotated[bool, typer.Option("--pareto", help="Those that no other beats in MACs and accuracy.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw accuracy over MACs instead.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the models of the registry: cost and measured accuracy.

    FLOPs are MACs (multiply-accumulates) of one image.

    \b
    Examples:
      zoo list
      zoo list 'trades-*' --max-flops 15M
      zoo list --min-robust 40% --by autoattack --json
      zoo list --pareto --by autoattack
      zoo list --plot --by clean
    """
    from zoo.cli.scatter import scatter
    from zoo.cli.tables import entries_table
    from zoo.registry.file import load_registry
    from zoo.registry.pick import list_models, pareto
    from zoo.system.errors import NothingMatches, UsageError

    if plot and as_json:
        raise UsageError("--plot draws for people and --json prints data: leave one of them out")
    registry = load_registry()
    names = list_models(
        pattern,
        max_flops=max_flops,
        max_params=max_params,
        min_clean=min_clean,
        min_robust=min_robust,
        by=by,
        family=family,
        registry=registry,
    )
    within = [registry.models[name] for name in names]
    entries = pareto([entry for entry in within if not entry.flags], by=by) if front else within
    out = Output(as_json=as_json, quiet=quiet)
    if not registry.models:
        out.say("the registry holds no model yet")
    elif not list_models(pattern, registry=registry):
        out.say(f"no model matches '{pattern}': zoo list shows them all")
    elif within and not entries:
        out.say(f"no model here has an accuracy under {by} that can be trusted: zoo list shows them without --pareto")
    elif not entries:
        out.say("no model is within these limits: zoo pick names the nearest")
    if entries or as_json:
        out.result(
            lambda: {"models": [{"name": entry.name, **entry.to_dict()} for entry in entries]},
            lambda: scatter(entries, by=by) if plot else entries_table(registry, entries, by=by),
        )
    if registry.models and not entries:
        raise typer.Exit(NothingMatches.exit_code)
