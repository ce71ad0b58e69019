"""Recipes: one TOML file per published model, checked before anything runs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zoo.errors import UsageError, nearest
from zoo.protocols import EPS
from zoo.spec import ArchSpec

RECIPES = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Train(_Section):
    method: Literal["pgd-at", "trades", "mart", "n-fgsm"]
    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=1, description="of all processes together")
    beta: float = Field(6.0, ge=0, description="weight of the divergence in TRADES and MART")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = True
    seed: int = 0
    images: int | None = Field(None, ge=1, description="train on the leading images only: for smoke runs")


class Attack(_Section):
    """The inner maximisation. For N-FGSM, ``steps`` is 1 and ``step`` its step size."""

    eps: float = Field(EPS, gt=0)
    step: float = Field(gt=0)
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


class Recipe(_Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    description: str
    family: str
    paper: str | None = None
    arch: ArchSpec
    train: Train
    attack: Attack
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    guard: Guard = Guard()

    @model_validator(mode="after")
    def _nfgsm_as_published(self) -> Recipe:
        if self.train.method == "n-fgsm" and self.attack.steps != 1:
            raise ValueError("n-fgsm takes one attack step: leave attack.steps at 1, or choose pgd-at")
        if self.train.method == "n-fgsm" and self.attack.objective != "ce":
            raise ValueError("n-fgsm ascends the cross-entropy: leave attack.objective at 'ce'")
        return self


def load_recipe(source: str | Path, *, overrides: Iterable[str] = (), preset: str | None = None) -> Recipe:
    """The recipe in the file ``source``, or the published one of that name.

    Args:
        overrides: ``"train.epochs=2"`` strings; values are TOML, bare words are strings.
        preset: apply the recipe's ``[preset.NAME]`` table first.

    Raises:
        UsageError: no such file; not TOML; a key or value that the schema refuses (the nearest key is named).
    """
    path = _find(source)
    try:
        data = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'{path}' is not TOML: {error}") from None
    presets = data.pop("preset", {})
    if preset is not None:
        if preset not in presets:
            raise UsageError(
                f"'{path.name}' has no preset '{preset}'{nearest(preset, presets)} "
                f"(it has: {', '.join(presets) or 'none'})"
            )
        for key, value in presets[preset].items():
            _set(data, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set wants KEY=VALUE, such as train.epochs=2, not '{override}'")
        _set(data, key.strip(), _toml_value(text.strip()))
    return parse_recipe(data, path.name)


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
        if not hasattr(section, "model_fields"):  # the union of architectures: its members, by their tag
            section = next(
                (m for m in getattr(section, "__args__", ()) if m.model_fields["arch"].default == location[1]),
                Recipe,
            )
    return list(section.model_fields)
