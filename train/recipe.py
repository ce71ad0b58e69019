"""Recipes: one TOML file per published model, checked before anything runs."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from zoo.budget import format_count, parse_count
from zoo.errors import UsageError, nearest
from zoo.protocols import EPS
from zoo.spec import ArchSpec, cost
from zoo.train.rnascl.space import search_space

RECIPES = Path(__file__).parent / "recipes"
ONLY, SEARCH = "train", "search"  # names of phases
SEARCHED = "searched"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Train(_Section):
    method: Literal["natural", "pgd-at", "trades", "mart", "n-fgsm"]
    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=1, description="of all processes together")
    beta: float = Field(6.0, ge=0, description="weight of the divergence in TRADES and MART")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = True
    weights: Literal["fp32", "fp16"] = Field("fp32", description="precision of the weights file that is left")
    seed: int = 0
    images: int | None = Field(None, ge=1, description="train on the leading images only: for smoke runs")


class Attack(_Section):
    """The inner maximisation. For N-FGSM, ``steps`` is 1 and ``step`` its step size."""

    eps: float = Field(EPS, gt=0)
    step: float = Field(EPS / 4, gt=0)
    steps: int = Field(1, ge=1)
    objective: Literal["ce", "kl"] = Field(
        "ce", description="what PGD ascends: cross-entropy, or KL(p(x) || p(x')) as TRADES has it"
    )


class Optimizer(_Section):
    lr: float = Field(0.2, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["onecycle", "step"] = "onecycle"
    warmup: float = Field(0.2, gt=0, lt=1, description="share of a onecycle schedule that rises")
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="shares of the run at which a step falls")
    gamma: float = Field(0.1, gt=0)


class Ema(_Section):
    decay: float = Field(0.999, ge=0, lt=1)
    recalibrate: int = Field(4096, ge=0, description="training images for the BatchNorm statistics")


class Guard(_Section):
    """PGD on held-out training images after every epoch; a collapse rolls the run back to the epoch before."""

    images: int = Field(512, ge=1, le=1000)
    steps: int = Field(10, ge=1)
    drop: float = Field(0.5, gt=0, lt=1, description="collapse: below this share of the best so far")
    rollbacks: int = Field(3, ge=0)


class Distill(_Section):
    """What a teacher adds to the loss: kl * KL(p, q) + gamma * L_attn (RNAS-CL, eq. 3)."""

    teacher: str = Field(description="a name of the registry, or the path of a model folder")
    kl: float = Field(1.0, ge=0)
    gamma: float = Field(1.0, ge=0, description="gamma_s and gamma_t of the paper; 0: no attention loss, no tutors")
    map_size: int = Field(16, ge=1, description="attention maps are interpolated to this height and width")
    versions: int = Field(
        0,
        ge=0,
        description="augmented versions of each image, drawn once, on which the teacher's lessons are computed once "
        "and kept in the cache (3.4 GB for four of CIFAR-10 and 34 layers); 0: each batch is augmented and taught anew",
    )
    tutors: Literal["searched", "depth", "random"] | dict[str, str] = Field(
        "depth",
        description="the teacher's convolution for each of the student's: what the search before found, the one at "
        "the same relative depth, one drawn at random, or by name",
    )


class Search(_Section):
    """RNAS-CL's search over widths and tutors (eq. 2)."""

    space: str = Field(description="s3, s5, s7, m, l, is, im or i")
    budget: int = Field(description="MACs, such as 15M: the target of the search, a limit of the freeze")
    latency: float = Field(1.0, ge=0, description="exponent of n_f = max(E/B, B/E), E the expected MACs; 0: no term")
    tau: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (5.0, 0.056)
    noise: Literal["gumbel", "normal"] = "gumbel"
    share: float = Field(0.2, gt=0, lt=1, description="of each batch that updates the Gumbel logits")
    lr: float = Field(0.01, gt=0, description="Adam's, on the Gumbel logits")

    @field_validator("budget", mode="before")
    @classmethod
    def _count(cls, value: Any) -> int:
        try:
            return parse_count(value)
        except UsageError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _within_the_space(self) -> Search:
        try:
            space = search_space(self.space)
        except UsageError as error:
            raise ValueError(str(error)) from None
        low, high = cost(space.smallest).macs, cost(space.largest).macs
        if self.budget < low:
            raise ValueError(
                f"space {self.space} has no network within {format_count(self.budget)} MACs: "
                f"its own go from {format_count(low)} to {format_count(high)}"
            )
        return self


class Recipe(_Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    description: str
    family: str
    paper: str | None = None
    dataset: Literal["cifar10", "imagefolder"] = "cifar10"
    arch: ArchSpec
    train: Train
    attack: Attack = Attack()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    guard: Guard = Guard()
    distill: Distill | None = None
    search: Search | None = None
    reported: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field({}, description="the paper's, by protocol")

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.train.method == "n-fgsm" and self.attack.steps != 1:
            raise ValueError("n-fgsm takes one attack step: leave attack.steps at 1, or choose pgd-at")
        if self.train.method == "n-fgsm" and self.attack.objective != "ce":
            raise ValueError("n-fgsm ascends the cross-entropy: leave attack.objective at 'ce'")
        if self.distill and self.train.method not in ("natural", "trades"):
            raise ValueError(
                f"distillation compares clean logits, which {self.train.method} does not have: choose natural or trades"
            )
        if self.search and (self.train.method != "natural" or not self.distill):
            raise ValueError("a search needs [distill] and train.method = 'natural'")
        if self.reported and not self.paper:
            raise ValueError("reported accuracies need a paper to come from")
        return self


def load_recipe(source: str | Path, *, overrides: Iterable[str] = (), preset: str | None = None) -> Recipe:
    """The recipe in the file ``source``, or the published one of that name, which has one phase only.

    Args and errors are those of :func:`load_phases`; UsageError also where the recipe has several phases.
    """
    phases = load_phases(source, overrides=overrides, preset=preset)
    if list(phases) != [ONLY]:
        raise UsageError(f"'{source}' has the phases {', '.join(phases)}: train it with zoo train, or take one of them")
    return phases[ONLY]


def load_phases(source: str | Path, *, overrides: Iterable[str] = (), preset: str | None = None) -> dict[str, Recipe]:
    """The phases of the recipe in the file ``source``, or of the published one of that name, in order.

    A ``[phase.NAME]`` table holds what that phase changes in the rest of the file, as dotted keys. A recipe without
    any is one phase, called "train". Of a recipe with a ``[search]``, the phases after the one called "search" have
    the architecture and the tutors that it finds; until then, the largest architecture stands in.

    Args:
        overrides: ``"train.epochs=2"`` strings, for all phases, or ``"phase.trades.train.epochs=2"``, for one;
            values are TOML, bare words are strings.
        preset: apply the recipe's ``[preset.NAME]`` table first, whose keys are like those of overrides.

    Raises:
        UsageError: no such file; not TOML; a key or value that the schema refuses (the nearest key is named).
    """
    path = _find(source)
    try:
        data = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'{path}' is not TOML: {error}") from None
    presets = data.pop("preset", {})
    if preset is not None and preset not in presets:
        raise UsageError(
            f"'{path.name}' has no preset '{preset}'{nearest(preset, presets)} (it has: {', '.join(presets) or 'none'})"
        )
    changes = {**presets[preset]} if preset is not None else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set wants KEY=VALUE, such as train.epochs=2, not '{override}'")
        changes[key.strip()] = _toml_value(text.strip())
    tables = data.pop("phase", {}) or {ONLY: {}}
    for key in changes:
        if key.startswith("phase.") and (key.count(".") < 2 or key.split(".")[1] not in tables):
            raise UsageError(f"'{key}' names no key of a phase of '{path.name}' (it has: {', '.join(tables)})")
    phases = {}
    for phase, own in tables.items():
        changed = copy.deepcopy(data)
        for key, value in {**own, **_changes_of(phase, changes)}.items():
            if isinstance(value, dict) and _is_section(key):  # or it would replace all of that section
                raise UsageError(f'{path.name}: a phase or preset changes single keys, in quotes: "{key}.KEY" = VALUE')
            _set(changed, key, value)
        if "search" in changed and SEARCH not in tables:
            raise UsageError(f"{path.name}: [search] is for a phase called 'search': add a table [phase.search]")
        phases[phase] = recipe = parse_recipe(_searchless(changed, phase), path.name)
        if recipe.distill and recipe.distill.tutors == SEARCHED and SEARCH not in phases:
            raise UsageError(
                f"{path.name}: distill.tutors = 'searched' needs a phase 'search' before '{phase}': "
                f"choose depth or random, or name the tutors"
            )
    return phases


def _is_section(key: str) -> bool:
    field = Recipe.model_fields.get(key)
    kinds = () if field is None else (field.annotation, *getattr(field.annotation, "__args__", ()))
    return any(isinstance(kind, type) and issubclass(kind, _Section) for kind in kinds)


def _changes_of(phase: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes that concern ``phase``: those for all, and then those under "phase.NAME."."""
    mine = f"phase.{phase}."
    everywhere = {key: value for key, value in changes.items() if not key.startswith("phase.")}
    return everywhere | {key.removeprefix(mine): value for key, value in changes.items() if key.startswith(mine)}


def _searchless(data: dict[str, Any], phase: str) -> dict[str, Any]:
    """``data`` with the space's largest network as its architecture, and without [search] in all other phases."""
    search = data.get("search")
    if isinstance(search, dict):
        data.setdefault("arch", search_space(str(search.get("space"))).largest.to_dict())
        if phase != SEARCH:
            del data["search"]
    return data


def published_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def _find(source: str | Path) -> Path:
    if Path(source).is_file():
        return Path(source)
    name = Path(source).name.removesuffix(".toml")
    published = published_recipes()
    if name in published:
        return published[name]
    raise UsageError(f"no recipe file '{source}', nor a published recipe of that name{nearest(name, published)}")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise UsageError(f"'{dotted}' is not a key of the recipe: '{section}' is a value, not a section")
    data[key] = value


def parse_recipe(data: dict[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = nearest(str(first["loc"][-1]), _keys_beside(first["loc"]))
            raise UsageError(f"{origin}: unknown key '{where}'{hint}") from None
        raise UsageError(f"{origin}: '{where}' is wrong: {first['msg']}") from None


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema allows where an unknown one was found."""
    section: Any = Recipe
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field is not None else section
        if not hasattr(section, "model_fields"):  # a union: of architectures, told by their tag, or with None
            members = [m for m in getattr(section, "__args__", ()) if hasattr(m, "model_fields")]
            tagged = [m for m in members if "arch" in m.model_fields and m.model_fields["arch"].default == location[1]]
            section = next(iter(tagged or members), Recipe)
    return list(section.model_fields)
