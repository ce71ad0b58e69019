"""``zoo eval``: measure a model under named protocols; the only writer of registry entries."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from zoo.cli.options import AsJson, BatchSize, Data, ModelName, Offline, OwnDataset, Quiet, attack_names, to_measure
from zoo.cli.output import Output, table
from zoo.cli.process import speaks
from zoo.system.errors import UsageError


def command(
    name: ModelName,
    protocols: Annotated[
        list[str] | None,
        typer.Option(
            *("--protocol", "-p"),
            help="A protocol, or 'released' for all of them; may be repeated.",
            autocompletion=attack_names,
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Only the first N images of each protocol.")] = None,
    batch_size: BatchSize = 250,
    write: Annotated[
        bool, typer.Option("--write", help="Store results in the registry, weights and bits beside it.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="With --write: other weights with this name are replaced, and results on other images removed.",
        ),
    ] = False,
    threat: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="As 'l2 0.5' or 'linf 4/255'; else the model's own.", show_default=False),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Attack on a CUDA GPU, decided in float32.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Take directions in float32 too, where bfloat16 would be faster.")
    ] = False,
    dataset: OwnDataset = None,
    data: Data = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Measure a model: accuracy under attack or common corruptions, with n and 95 % interval.

    Only images that the model still gets right are attacked. An interrupted run goes on where it stopped. NAME may be
    a registry name, local-dir:PATH (what zoo train leaves), hf-hub:ORG/REPO, or a model of your own:
    package.module:function, which returns an nn.Module, FILE.onnx or FILE.pt2. On another data set than CIFAR-10 or
    under another threat model than linf 8/255, protocols have names that say so: cifar100-pgd20, pgd20-l2-0.5.
    --protocol takes these names too, and the threat model of a name comes before --threat.

    Several processes share the images, with the results of one, if torchrun or accelerate starts them.

    Protocols: clean, noise, fgsm, pgd20, mifgsm20, cw20, apgd50, autoattack (these are 'released'); pgd20-step0.003,
    pgd1000, pgd20x100, pgd20-t, deepfool, square, apgd50x10, apgd20x5, autoattack10k. See docs/robustness.md.
    corruptions and cifar10-c measure all images in 15 kinds of corruption at 5 severities: docs/corruptions.md.

    \b
    Examples:
      zoo eval trades-s7 --protocol pgd20
      zoo eval trades-s7 -p clean -p autoattack -n 200 --json
      zoo eval trades-s7 -p pgd20 -p pgd20-l2-0.5
      zoo eval trades-s7 -p released --threat "linf 4/255"
      zoo eval trades-s7 -p corruptions -n 1000
      zoo eval local-dir:runs/trades-s7/model -p released --write
      zoo eval mynets:make -p released --dataset cifar100
      zoo eval net.onnx -p released
      zoo eval trades-s7 -p autoattack --gpu --batch-size 1000
      torchrun --nproc-per-node 4 -m zoo eval trades-s7 -p autoattack
    """
    from zoo.evaluation.protocols import CORRUPTED, RELEASED, dataset_of, protocol
    from zoo.evaluation.threat import ThreatModel
    from zoo.weights.address import FILE
    from zoo.weights.own import Own, own_sha256, watched

    output = Output(as_json=as_json, quiet=quiet or not speaks())
    asked = protocols or ["clean", "pgd20"]
    names = list(dict.fromkeys(each for one in asked for each in (RELEASED if one == "released" else (one,))))
    known = [protocol(one) for one in names]  # refused before anything is read
    if n is not None and write and any(n < one.n for one in known):
        raise UsageError("--write stores whole protocols only: leave -n out")
    asked_threat = None if threat is None else ThreatModel.parse(threat)
    subject = to_measure(name, dataset, offline=offline, say=output.say)
    if write and isinstance(subject, Own):
        raise UsageError(f"'{name}' has no spec, which an entry of the registry has: leave --write out")
    if gpu and subject.address.scheme == FILE and subject.address.place.lower().endswith(".onnx"):
        raise UsageError(f"'{name}' is run by ONNX Runtime on the CPU: leave --gpu out")
    device = _cuda() if gpu else "cpu"

    from zoo.cli.tables import corruptions_table
    from zoo.evaluation.corruptions import source_of
    from zoo.evaluation.evaluate import worst_case
    from zoo.evaluation.flags import disagree, explained
    from zoo.evaluation.measure import Measurement, measure
    from zoo.evaluation.statistics import Accuracy
    from zoo.evaluation.together import gathered, joined
    from zoo.system.cache import cache_root
    from zoo.system.hub import HubFiles
    from zoo.weights.load import Found, find
    from zoo.weights.release import candidate, on_images, release

    if replace and not write:
        raise UsageError("--replace is for --write: add --write, or leave --replace out")
    releasing = None
    if isinstance(subject, Found):
        subject = find(name, HubFiles(offline=offline))
        releasing = candidate(subject, replace=replace) if write else None
    task = subject.task
    if releasing and task.dataset is None:
        raise UsageError(f"'{name}' names no data set, which an entry of the registry has: leave --write out")
    images = subject.images(data, offline=offline)
    chosen = list(dict.fromkeys(protocol(one, asked_threat or task.threat) for one in names))
    if elsewhere := [one for one in names if dataset_of(one) not in (None, images.name)]:
        raise UsageError(f"'{name}' is evaluated on {images.name}: leave {', '.join(elsewhere)} out")
    chosen = list(dict.fromkeys(one.on(images.name) for one in chosen))
    if n is not None:
        chosen = [one.model_copy(update={"n": min(n, one.n)}) for one in chosen]
    for each in chosen:
        if each.attack in CORRUPTED:
            source_of(each, images.split(each.split))  # refused before the model is loaded
    if releasing:
        releasing = on_images(releasing, images, chosen, replace=replace)
    model = subject.load()
    sha256 = subject.sha256 or own_sha256(model)

    done: list[Measurement] = []
    with watched(subject), output.progress() as advance, joined() as together:
        if together and (len(set(gathered(sha256))) > 1 or sha256 is None):  # all must have met before one leaves
            why = "no parameters to compare" if sha256 is None else "other weights in every process"
            raise UsageError(f"'{name}' has {why}, and processes must share one model: use one process")
        measurements = measure(
            model,
            sha256,
            images,
            chosen,
            batch_size=batch_size,
            device=device,
            progress=lambda one, done, total: advance(one.name, done, total),
            resume=cache_root() / "evaluations",
            together=together,
            directions="fp32" if exact else "auto",
        )
        try:
            for measurement in measurements:
                done.append(measurement)
                if releasing and not releasing.outdated and speaks():
                    release(releasing, [measurement])  # as each is done: an interruption loses nothing
        except BaseException:
            for one in done:
                output.say("measured before that: {} {}, {} ({} images)".format(*_row(one.protocol.name, one.accuracy)))
            raise
        if releasing and releasing.outdated and speaks():
            release(releasing, done)  # at once: no result is removed before all are there
            if removed := sorted(releasing.outdated.keys() - {one.protocol.name for one in done}):
                output.say(f"results on other images were removed: {', '.join(removed)}")

    rows, tables = [], []
    for one in done:
        rows.append(_row(one.protocol.name, one.accuracy))
        if found_in := one.result.get("corruptions"):
            rows.append(_row(f"  worst: {found_in['worst']}", found_in["accuracy"]))
            table_of = corruptions_table(found_in["cells"], one.accuracy["n"])
            tables += ["", f"{one.protocol.name}, %:", table_of]
    results: dict[str, Any] = {one.protocol.name: one.result for one in done}
    attackers = [one for one in done if one.protocol.attacked]
    attacked = {one.protocol.name: one.bits for one in attackers}
    if len(attacked) > 1 and len({one.protocol.threat for one in attackers}) == 1:
        bits = worst_case(attacked)
        worst = Accuracy.of(bits).to_dict()
        results["worst-case"] = {"accuracy": worst, "over": sorted(attacked)}
        rows.append(_row("worst case of the attacks", worst))
    flags = {flag for one in done for flag in one.flags}
    if disagree((one.protocol, one.bits) for one in done):
        flags.add("unreliable")
    for line in explained(flags):
        output.say(f"flagged {line}")
    if not speaks():
        return
    columns = ["protocol", "accuracy", "95 % interval", "n"]
    output.result(
        {"name": str(subject.address), "weights_sha256": sha256, "results": results, "flags": sorted(flags)},
        lambda: "\n".join([table(columns, rows), *tables]),
    )


def _cuda() -> str:
    """The GPU of this process, the first one unless torchrun started it."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA GPU here: leave --gpu out")
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def _row(name: str, accuracy: dict[str, Any]) -> list[str]:
    low, high = accuracy["ci95"]
    return [name, f"{accuracy['value']:.2%}", f"{low:.2%} - {high:.2%}", f"{accuracy['n']:,}"]
