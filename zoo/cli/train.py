"""``zoo train``: run a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.options import AsJson, Data, Offline, Quiet, recipe_names
from zoo.cli.output import Output
from zoo.cli.process import speaks
from zoo.system.errors import UnknownModel, Unreachable, UsageError

if TYPE_CHECKING:
    from zoo.weights.load import Found

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """A duration such as ``90s``, ``45m`` or ``1.5h``, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) == 0:
        raise UsageError(f"a time budget is a positive number with a unit, such as 90s, 45m or 1.5h, not '{text}'")
    return float(match[1]) * UNITS[match[2]]


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A TOML file, or the name of a published recipe.", autocompletion=recipe_names
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Apply a preset of the recipe, such as smoke.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder (default: runs/NAME).", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, if there is one, with its settings.")
    ] = False,
    time_budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time for training steps (90s, 45m, 2h); the schedule is brought forward."),
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Train a recipe; its averaged weights end up in OUT/model, or in OUT/PHASE/model where it has phases.

    Every epoch ends in a checkpoint; Ctrl-C and SIGTERM leave one too. On several GPUs or machines, start it with
    `torchrun ... -m zoo train ...` or `accelerate launch ... -m zoo train ...` (docs/training.md); machines must share
    the folder OUT.

    \b
    Examples:
      zoo train trades-s7
      zoo train trades-s7 --preset smoke --out runs/try
      zoo train my.toml --set train.epochs=2 --set optimizer.lr=0.1
      zoo train trades-s7 --resume --time-budget 45m
      zoo train rnascl-s7-wrt34-2 --set teacher.name=runs/my-teacher/model
      zoo train rnascl-i-r18 --data imagenet100 --set teacher.name=my-teacher
    """
    from zoo.train.recipes.published import recipe_file

    budget = None if time_budget is None else seconds(time_budget)
    recipe_file(recipe)  # before torch is imported

    from zoo.attacks.pulse import listening
    from zoo.datasets import dataset_called
    from zoo.datasets.base import check_fits
    from zoo.system.hub import without_network
    from zoo.train.pipeline import asked_of, run
    from zoo.train.recipes.phases import load_phases
    from zoo.train.run.loop import CHECKPOINT, check_free
    from zoo.train.teachers.teacher import check_teacher

    output = Output(as_json=as_json, quiet=quiet or not speaks())
    with without_network(offline):
        phases = load_phases(recipe, overrides=overrides or (), preset=preset)
    first = next(iter(phases.values()))
    folder = out or Path("runs") / first.name
    asked: dict[str, Any] = {"preset": preset, "overrides": list(overrides or ())}
    if resume and (before := asked_of(folder)):
        asked = {"preset": preset or before["preset"], "overrides": [*before["overrides"], *asked["overrides"]]}
        with without_network(offline):
            phases = load_phases(recipe, **asked)
            as_before = phases == load_phases(recipe, **before)
        if as_before:
            asked = before
        elif any(folder.rglob(CHECKPOINT)):  # otherwise it was stopped before it trained
            raise UsageError(f"'{folder}' holds a run with other settings: leave --set and --preset out to continue it")
    dataset = dataset_called(first.dataset)
    for phase, settings in phases.items():  # refused before anything is read or trained
        check_free(folder / phase if len(phases) > 1 else folder, resume=resume)
        earlier = ("largest", *phases)  # teachers that the training itself makes
        teacher = settings.teacher.name if settings.teacher else None
        if settings.start:
            _checked(settings.start, "start", offline)
        if teacher and not (settings.supernet and teacher in earlier):
            model = _checked(teacher, "teacher.name", offline)
            check_teacher(teacher, model.spec, model.classes, settings.arch, dataset.classes)
    dataset = dataset.load(data, offline=offline)
    check_fits(dataset, first.arch)
    history: dict[str, list[dict[str, Any]]] = {phase: [] for phase in phases}

    def report(phase: str, metrics: dict[str, Any]) -> None:
        history[phase].append(metrics)
        settings = phases[phase]
        epoch = metrics["epoch"] * settings.method.replays  # as the recipe counts
        output.say(
            f"{phase} epoch {epoch:g}/{settings.train.epochs}  loss {metrics['loss']:.3f}  "
            f"held-out clean {metrics['clean']:.1%}  PGD-{settings.guard.steps} {metrics['pgd']:.1%}  "
            + (f"expected {metrics['expected_macs'] / 1e6:.2f} M MACs  " if "expected_macs" in metrics else "")
            + f"{metrics['images_per_s']:.0f} images/s"
        )

    with without_network(offline), output.progress() as advance:

        def tick(phase: str, step: int, total: int, loss: float) -> None:
            images = phases[phase].train.batch_size if phase in phases else 1  # the predictor's sub-nets come singly
            advance(phase, step * images, total * images)

        with listening(lambda share: advance("data made by the teacher, %", int(100 * share), 100)):
            left = run(
                phases,
                dataset,
                folder,
                resume=resume,
                time_budget=budget,
                asked=asked,
                report=report,
                tick=tick,
            )
    if not speaks():
        return
    model = list(left.values())[-1]
    output.result(
        {
            "model": str(model),
            "name": list(phases.values())[-1].name,
            "phases": {phase: str(path) for phase, path in left.items()},
            "last_epoch": {phase: epochs[-1] if epochs else None for phase, epochs in history.items()},
        },
        f"{model}: try it with `zoo eval local-dir:{model}`",
    )


def _checked(name: str, key: str, offline: bool) -> Found:
    """The model ``name`` that ``key`` of a recipe asks for, without its weights. For one that is not there, this raises
    what :func:`zoo.weights.load.find` raises; if a published recipe makes it, the sentence says so."""
    from zoo.system.hub import HubFiles
    from zoo.train.recipes.phases import load_phases
    from zoo.train.recipes.published import published_recipes
    from zoo.weights.load import find

    try:
        return find(name, HubFiles(offline=offline), folders=True, pretrained=False)
    except Unreachable as error:
        runs, recipe, *_ = (*Path(name).parts, "")
        if runs == "runs" and recipe in published_recipes():
            raise Unreachable(f"{error}: make it with `zoo train {recipe}`") from None
        raise
    except UnknownModel:
        if name in published_recipes():
            *more, last = load_phases(name)
            left = Path("runs", name, last if more else "", "model").as_posix()
            raise UnknownModel(
                f"'{name}' is a recipe and no released model: make it with `zoo train {name}`, then --set {key}={left}"
            ) from None
        raise
