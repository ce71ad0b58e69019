"""The model card of a registry entry, and its records of evaluation results, by the Hub client's own classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.datasets import DATASETS
from zoo.evaluation.flags import explained
from zoo.evaluation.protocols import Protocol
from zoo.evaluation.threat import ThreatModel
from zoo.hub.plot import accuracy_svg
from zoo.registry.entry import Entry, Registry, Result
from zoo.registry.words import attack_of
from zoo.specs import parse_spec
from zoo.system.errors import UsageError
from zoo.system.toolchain import MACHINE
from zoo.system.units import format_ms
from zoo.version import __version__
from zoo.weights.folder import CONFIG

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

TEMPLATE = Path(__file__).with_name("card.md")
PLOT, RECORDS = "accuracy.svg", ".eval_results"
LIBRARY, TASK = "robust-zoo", "image-classification"


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a card says of the files beside it.

    Attributes:
        weights: the name of the safetensors file that is loaded, its size in bytes, and its SHA-256.
        cut: of a sub-net, the file that the registry refers to.
        graph: the ONNX file; ``opset``; ``check``: how it was compared with the model, in words.
    """

    weights: Mapping[str, Any]
    cut: str | None
    graph: str
    opset: int
    check: str


class Facts:
    """What a card says of the registry entry ``entry``: its results in order, and its data set.

    Raises:
        UsageError: nothing was measured, or no accuracy under attack.
    """

    def __init__(self, entry: Entry, registry: Registry, repo_id: str) -> None:
        from huggingface_hub import constants

        self.entry, self.repo_id = entry, repo_id
        self.url = f"{constants.ENDPOINT}/{repo_id}"
        self.protocols = {name: Protocol(**one) for name, one in registry.protocols.items() if name in entry.results}
        self.results = {name: entry.results[name] for name in self.protocols}
        self.attacked = [name for name, one in self.protocols.items() if one.attacked]
        if not self.attacked:
            what = "only without attack" if entry.results else "under no protocol"
            raise UsageError(
                f"'{entry.name}' was measured {what}, and a card must say what it withstands: run "
                f"`zoo eval {entry.name} -p pgd20 --write` first"
            )
        self.dataset = DATASETS.get(entry.dataset)
        self.title = self.dataset.title if self.dataset else entry.dataset
        self.data_id: str | None = getattr(self.dataset, "repo_id", None)
        splits = registry.datasets[entry.dataset]["splits"]
        self.splits: dict[str, str] = {name: split["sha256"] for name, split in splits.items()}

    @property
    def strongest(self) -> str:
        """The protocol to name first: of those within the model's threat model AutoAttack on the most images, else the
        one that leaves the fewest images right."""
        own = [name for name in self.attacked if self.protocols[name].threat == self.entry.threat] or self.attacked
        whole = [name for name in own if self.protocols[name].attack == "autoattack"]
        if whole:
            return max(whole, key=lambda name: self.results[name].accuracy.n)
        return min(own, key=lambda name: self.results[name].accuracy.value)

    @property
    def revision(self) -> str | None:
        """The commit of the data set on the Hub whose test images were measured, where the fingerprint shows it."""
        known = getattr(self.dataset, "test_sha256", None)
        return getattr(self.dataset, "revision", None) if known and known == self.splits.get("test") else None

    @property
    def plot(self) -> str:
        accuracies = {name: result.accuracy for name, result in self.results.items()}
        title = f"Accuracy of {self.entry.name} on {self.title} under each protocol, with 95 % intervals"
        guess = 1 / parse_spec(self.entry.spec).classes
        return accuracy_svg(title, accuracies, unattacked=accuracies.keys() - set(self.attacked), guess=guess)


def model_card(facts: Facts, files: Files) -> ModelCard:
    """The card: metadata with ``model-index``, and the text."""
    from huggingface_hub import ModelCard, ModelCardData

    entry = facts.entry
    spec = parse_spec(entry.spec)
    known = facts.dataset.classes if facts.dataset else ()
    data = ModelCardData(
        license=entry.license.lower(),
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=["adversarial-robustness", TASK, "edge", "onnx", entry.family, entry.threat.slug],
        datasets=[facts.data_id] if facts.data_id else None,
        metrics=["accuracy"],
        model_name=entry.name,
        eval_results=list(_index(facts)),
    )
    split = "; ".join(f"the {name} split with SHA-256 `{sha256[:16]}…`" for name, sha256 in facts.splits.items())
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        entry=entry,
        repo_id=facts.repo_id,
        headline=_headline(facts),
        warnings=explained(entry.flags),
        plot=PLOT,
        config=CONFIG,
        weights=files.weights,
        cut=files.cut,
        onnx={"file": files.graph, "opset": files.opset, "check": files.check},
        data=f"[{facts.title}](https://huggingface.co/datasets/{facts.data_id})" if facts.data_id else facts.title,
        shape=f"[N, 3, {spec.image_size}, {spec.image_size}]",
        size=spec.image_size,
        n_classes=spec.classes,
        classes=known if len(known) == spec.classes <= 20 else (),
        protocol=facts.strongest,
        results=[row for name, result in facts.results.items() for row in _rows(facts, name, result)],
        split=split,
        toolchains=list(_toolchains(facts)),
        reported=[(name, f"{100 * one.value:.2f}", one.source) for name, one in entry.reported.items()],
        latency=[
            (device + " (busy)" * one.busy, engine, batch, format_ms(one.p50_ms), format_ms(one.p95_ms))
            for device, engines in entry.latency.items()
            for engine, batches in engines.items()
            for batch, one in batches.items()
        ],
        paper=re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", entry.paper or ""),
        threat=_threat(entry.threat),
        training=list(_training(entry, facts.title)),
        version=__version__,
        records=RECORDS if facts.data_id else None,
    )


def eval_records(facts: Facts) -> dict[str, str]:
    """The ``.eval_results/*.yaml`` files by name, one for each protocol (https://huggingface.co/docs/hub/eval-results).

    There are none for a data set that is not on the Hub: a record must name one.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    records = {}
    for name, result in facts.results.items() if facts.data_id else ():
        accuracy, protocol = result.accuracy, facts.protocols[name]
        low, high = accuracy.ci95
        attack = attack_of(protocol.model_dump())
        record = EvalResultEntry(
            dataset_id=str(facts.data_id),
            task_id=name,
            value=accuracy.value,
            dataset_revision=facts.revision,
            date=result.measured_at,
            source_url=facts.url,
            source_name=_source(result),
            notes=f"accuracy, {attack}; n = {accuracy.n} images of the {protocol.split} split; "
            f"95 % interval {low:.4f} to {high:.4f}",
        )
        records[f"{RECORDS}/{name}.yaml"] = yaml_dump(eval_result_entries_to_yaml([record]), sort_keys=False)
    return records


def _index(facts: Facts) -> Iterator[EvalResult]:
    """The results as ``model-index`` holds them: one metric for each protocol."""
    from huggingface_hub import EvalResult

    for name, result in facts.results.items():
        protocol, accuracy = facts.protocols[name], result.accuracy
        asked = {key: value for key, value in protocol.model_dump(mode="json").items() if value is not None}
        measured = {"n": accuracy.n, "ci95": [round(bound, 6) for bound in accuracy.ci95]}
        threat = {"threat_model": str(protocol.threat)} if protocol.eps else {}
        yield EvalResult(
            task_type=TASK,
            task_name="Image Classification",
            dataset_type=facts.data_id or facts.entry.dataset,
            dataset_name=facts.title,
            dataset_split=protocol.split,
            dataset_revision=facts.revision,
            metric_type="accuracy",
            metric_name=f"accuracy, {name}",
            metric_value=accuracy.value,
            metric_args={**asked, **measured, **threat, "measured_at": result.measured_at},
            source_name=_source(result),
            source_url=facts.url,
        )


def _headline(facts: Facts) -> str:
    """What the model withstands, with the attack, n and the interval; that it is not robust, if guessing is as good."""
    entry, name = facts.entry, facts.strongest
    attacked, guess = facts.results[name].accuracy, 1 / parse_spec(entry.spec).classes
    low, high = attacked.ci95
    protocol = facts.protocols[name]
    said = (
        f"Under {name} ({protocol.threat}), **{_percent(attacked.value)}** of {attacked.n:,} {protocol.split} images "
        f"of {facts.title} are classified correctly (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )
    if clean := [result for key, result in facts.results.items() if facts.protocols[key].attack == "none"]:
        said += f", and {_percent(clean[0].accuracy.value)} of {clean[0].accuracy.n:,} without an attack"
    weak = "" if low > guess else f" **It is not robust**: guessing has {_percent(guess)}."
    return f"{said}.{weak}"


def _rows(facts: Facts, name: str, result: Result) -> Iterator[tuple[str, ...]]:
    """The lines of the table for one protocol; under corruptions a second one for the worst kind."""
    images = {name: (attack_of(facts.protocols[name].model_dump()), result.accuracy)}
    if found := result.corruptions:
        images[f"{name}, worst kind"] = f"{found.worst}, mean of 5 severities", found.accuracy
    for title, (words, one) in images.items():
        low, high = one.ci95
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        yield title, words, f"{100 * one.value:.2f}", interval, f"{one.n:,}", result.measured_at[:10]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _source(result: Result) -> str:
    return f"zoo eval, robust-zoo {result.toolchain.get('robust-zoo', '')}".rstrip()


def _toolchains(facts: Facts) -> Iterator[dict[str, str]]:
    """Each toolchain once, with the protocols that were measured with it."""
    grouped: dict[str, list[str]] = {}
    for name, result in facts.results.items():
        tools = result.toolchain
        words = ", ".join(f"{key} {value}" for key, value in tools.items() if key not in MACHINE)
        machine = ", ".join(f"{key} {tools[key]}" for key in ("cpu", "cores", "os") if tools.get(key))
        grouped.setdefault(f"{words}; {machine}", []).append(name)
    for words, names in grouped.items():
        yield {"names": ", ".join(names), "words": words}


def _threat(threat: ThreatModel) -> str:
    change = {
        "linf": f"change every value of every pixel by at most {threat.size}",
        "l2": f"change the image by at most {threat.size} in the Euclidean norm",
    }[threat.norm]
    return (
        f"{threat}, white-box and untargeted: the attacker knows the weights, may {change} on the scale of [0, 1], and "
        "wins with any wrong class."
    )


def _training(entry: Entry, title: str) -> Iterator[tuple[str, str]]:
    train = entry.train
    yield "Data", f"the training split of {title}"
    yield "Recipe", f"`{train.recipe}` (SHA-256 `{train.recipe_sha256[:16]}…`), seed {train.seed}"
    if method := ((train.settings or {}).get("method") or {}).get("name"):
        yield "Method", str(method)
    taught = train.teacher
    known = (
        (f", {name} {_percent(one.value)} (n = {one.n:,})" for name, one in taught.accuracy.items()) if taught else ()
    )
    yield "Teacher", f"`{taught.name}`{''.join(known)}" if taught else "none"
    yield "Start", f"`{train.start.name}`" if train.start else "random weights"
    phases = ", ".join(f"{phase.name} {phase.epochs:g} epochs" for phase in train.phases)
    yield "Length", f"{train.epochs:g} epochs, {train.images_seen:,} images" + (f" ({phases})" if phases else "")
    precision = f" in {train.precision}" if train.precision else ""
    yield "Machine", f"{train.device}, {train.wall_s / 60:.0f} min{precision}, torch {train.torch}"
    if train.commit:
        yield "Commit", f"`{train.commit}` of Robust Zoo"
    if entry.subnet:
        choices = ", ".join(f"{name} {value:g}" for name, value in entry.subnet.values.items())
        yield "Sub-net", f"of `{entry.subnet.of}`: {choices}"
