"""What a bundle says about itself: manifest, reports and README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.datasets import DATASETS
from zoo.evaluation.threat import ThreatModel
from zoo.export.bundle.conditions import conditions, in_words
from zoo.export.bundle.folder import MANIFEST, write_sums
from zoo.export.bundle.manifest import Manifest, Report, to_json
from zoo.export.engines import Backend, backend
from zoo.export.ladder.climb import RANDOM
from zoo.export.ladder.gate import CORRUPTIONS, FLAGS, flags_of, verdict
from zoo.export.onnx.graph import GRAPH

NORMS = {"linf": "l-infinity", "l2": "l2"}
RUN = """What {engine.title} runs is `{file}`; the graph above is the one that it was made from, or its float original.
`examples/{engine.example}` in Robust Zoo's repository is a program for it that needs no more than its runtime.

"""


def unverified(dataset: str | None) -> str:
    """Why the robustness of an engine was not verified whose model is for ``dataset``, and what to do."""
    said = "robustness was NOT verified on the exported engine, because "
    if dataset not in DATASETS:
        return f"{said}its model names no data set that is known here"
    found = DATASETS[dataset]
    return f"{said}{found.title} is not at hand: set {found.variable} or pass --data to verify it"


def never_run(engine: Backend) -> str:
    """What to do about a bundle of an engine that was built on a machine that cannot run it."""
    return (
        f"robustness was NOT verified, because the {engine.title} engine is built and has not run yet: copy the bundle "
        "to its device and run 'zoo verify BUNDLE' there, or run 'zoo verify BUNDLE --device ssh://USER@HOST' here"
    )


def robustness(report: Report, dataset: str | None, classes: int) -> str:
    """What an attack on the exported engine found: the sentence that a manifest carries and a README begins with.

    Args:
        classes: of the model; an engine that is right on no more than one image in so many is not robust.
    """
    attacked = [rung for rung in report.rungs if rung.protocols]
    if attacked:
        last, protocols = attacked[-1], [protocol for rung in attacked for protocol in rung.protocols]
        names = ", ".join(dict.fromkeys(protocol["name"] for protocol in protocols))
        threat = ThreatModel(norm=protocols[-1]["norm"], eps=protocols[-1]["eps"])
        twin, engine = last.measured["twin"], last.measured["engine"]
        low, high = engine["ci95"]
        found = (
            f"attacked with {names} ({threat}), the exported engine is right on {engine['accuracy']:.1%} of {last.n:,} "
            f"images (95 % interval {low:.1%} to {high:.1%}), its float twin on {twin['accuracy']:.1%}"
        )
        if report.failed is not None:
            return f"{found}; robustness was NOT shown on the exported engine: {verdict(report.failed)}"
        found += "".join(f"; flagged as {flag}: {FLAGS[flag]}" for flag in flags_of(report.rungs))
        if low > 1 / classes:
            return found
        chance = f"that is no better than chance ({1 / classes:.1%})"
        return f"{found}; {chance}: the engine is as good as its twin, and neither is robust"
    if report.failed is not None:
        return f"robustness was NOT shown on the exported engine; {verdict(report.failed)}"
    if "not_run" in report.engine:
        return never_run(backend(report.engine["engine"]))
    if report.asked != "none" and any(rung.dataset == RANDOM for rung in report.rungs):
        return unverified(dataset)
    return f"robustness was NOT verified on the exported engine: only level '{report.asked}' was asked for"


def findings(report: Report, dataset: str | None, classes: int) -> dict[str, Any]:
    """What a manifest says of ``report``: its fields ``conditions``, ``verified``, ``robustness`` and ``gates``."""
    return {
        "conditions": conditions(report),
        "verified": report.reached,
        "robustness": robustness(report, dataset, classes),
        "gates": tuple(rung.model_copy(update={"bits": None}) for rung in report.rungs),
    }


def accuracy_on_the_engine(manifest: Manifest) -> float | None:
    """The share of images that the engine got right on the highest rung that holds; None below clean."""
    ladder = [rung for rung in manifest.gates if rung.name != CORRUPTIONS]
    climbed = [rung for rung in ladder if "engine" in rung.measured and rung.holds]
    return climbed[-1].measured["engine"]["accuracy"] if climbed else None


def write_reports(folder: Path, manifest: Manifest, report: Report, *, sums: Mapping[str, str] | None = None) -> None:
    """Finish the bundle in ``folder``, which holds artifact and probe: manifest, reports, README and sums.

    Args:
        sums: the SHA-256 of files that need not be read for that again.
    """
    parity = report.model_copy(
        update={"rungs": tuple(rung for rung in report.rungs if rung.name in ("graph", "parity"))}
    )
    (folder / "reports").mkdir(exist_ok=True)
    (folder / "reports" / "verify.json").write_text(to_json(report), encoding="utf-8", newline="\n")
    (folder / "reports" / "parity.json").write_text(to_json(parity), encoding="utf-8", newline="\n")
    (folder / "README.md").write_text(readme(manifest), encoding="utf-8", newline="\n")
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8", newline="\n")
    write_sums(folder, sums)


def _expected(manifest: Manifest) -> str:
    """What the snippet prints: rounding, and where the graph is quantised what that does."""
    parity = [rung.measured["relative_difference"] for rung in manifest.gates if rung.name in ("graph", "parity")]
    its = manifest.artifact.format == "onnx" or manifest.verified == "built"
    return f"about {parity[0]:.0e}" if parity and its else "small"


def readme(manifest: Manifest) -> str:
    """A page for those who are handed the folder and nothing else."""
    size = manifest.spec.image_size
    threat, artifact = manifest.threat_model, manifest.artifact
    named = f" of {', '.join(manifest.labels)}" if manifest.labels else ""
    named = named if len(manifest.labels) <= 20 else ", whose names are the `labels` of `manifest.json`"
    engine = backend(manifest.engine)
    own = "" if artifact.format == "onnx" else RUN.format(engine=engine, file=artifact.file)
    attacked = f"Under these conditions: {in_words(manifest.conditions)}.\n\n" if manifest.conditions else ""
    if artifact.format == "onnx" and artifact.options:
        attacked += "The session had options of its own (`artifact.options` in `manifest.json`): set them too.\n\n"
    gates = "\n".join(f"- {verdict(rung)}: {'holds' if rung.holds else 'FAILS'}" for rung in manifest.gates)
    return f"""# {manifest.name}

{manifest.robustness[0].upper()}{manifest.robustness[1:]}.

An image classifier. Threat model: {NORMS[threat.norm]} perturbations of {threat.size}.

{artifact.format.upper()}, {artifact.precision}, opset {artifact.opset}; {manifest.cost.macs / 1e6:.1f} M \
multiply-accumulates, {manifest.cost.params / 1e3:,.0f} k parameters.

- Input `{manifest.io.input.name}`: float32 RGB images [N, 3, {size}, {size}] in [0, 1]; normalisation is inside.
- Output `{manifest.io.output.name}`: logits [N, {manifest.spec.classes}]\
{named}.

```python
import numpy, onnxruntime

session = onnxruntime.InferenceSession("{GRAPH}")
probe = numpy.load("probe/clean.npz")
(logits,) = session.run(None, {{"{manifest.io.input.name}": probe["images"]}})
difference, spread = abs(logits - probe["logits"]).max(), numpy.median(probe["logits"].std(1))
print(difference / spread)  # {_expected(manifest)}
```

{own}## What was checked

{gates or "- nothing"}

{attacked}`sha256sum -c SHA256SUMS` checks the files, and `zoo verify .` (`pip install robust-zoo`) repeats everything.
`manifest.json` holds the details, `reports/` the per-image results.
"""
