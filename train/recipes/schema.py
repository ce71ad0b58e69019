"""What a recipe may say: the schema of its TOML file, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from zoo.datasets import DATASETS, dataset_called
from zoo.specs import ArchSpec, cost
from zoo.system.errors import UsageError, nearest
from zoo.system.units import format_count, parse_count
from zoo.train.methods import METHODS
from zoo.train.methods.method import Attack, Section
from zoo.train.methods.replay import Replayed
from zoo.train.methods.rnascl import RnasCL
from zoo.train.methods.rrm import Rrm
from zoo.train.spaces import space_called
from zoo.train.spaces.rnascl import search_space

ONLY, SEARCH = "train", "search"  # names of phases

if TYPE_CHECKING:
    from zoo.train.methods.method import Method as AnyMethod
else:  # the class in the table that has this name
    AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007


def _reading(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``read`` as a validator, for which pydantic needs a ValueError in place of a UsageError."""

    def validated(value: Any) -> Any:
        try:
            return read(value)
        except UsageError as error:
            raise ValueError(str(error)) from None

    return validated


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, BeforeValidator(_reading(parse_count))]
DatasetName = Annotated[str, AfterValidator(_reading(lambda name: dataset_called(name).name))]
SpaceName = Annotated[str, AfterValidator(_reading(lambda name: space_called(name).name))]
SearchSpaceName = Annotated[str, AfterValidator(_reading(lambda name: search_space(name).name))]


class Train(Section):
    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=1, description="of all processes together")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device has instructions for it, else fp32"
    )
    compile: bool = True
    graph: bool = Field(
        False,
        description="on one CUDA GPU: attack, loss and gradients of a step as one CUDA graph, for methods with one "
        "update from a batch, without int8 and cached answers",
    )
    weights: Literal["fp32", "fp16"] = Field("fp32", description="precision of the weights file that is left")
    seed: int = Field(0, ge=0, lt=2**32)
    int8: bool = Field(
        False,
        description="round weights and activations as int8 engines do: zoo.train.run.qat; precision = 'fp32'",
    )
    images: int | None = Field(None, ge=1, description="train on the leading images only: for smoke runs")


class Optimizer(Section):
    lr: float = Field(0.2, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, le=1)
    schedule: Literal["onecycle", "cosine", "step"] = "onecycle"
    warmup: float = Field(0.2, gt=0, lt=1, description="share of a onecycle schedule that rises")
    milestones: tuple[Share, ...] = Field((0.5, 0.75), description="shares of the run at which a step falls")
    gamma: float = Field(0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Optimizer:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum: set nesterov = false, or momentum above 0")
        return self


class Ema(Section):
    decay: float = Field(0.999, ge=0, lt=1)
    recalibrate: int = Field(
        4096, ge=0, description="training images for the BatchNorm statistics; 0: they are averaged as the weights are"
    )


class Guard(Section):
    """PGD on held-out training images; a collapse rolls the run back to the checkpoint before, written at each good
    judgement."""

    every: int = Field(1, ge=1, description="epochs from one judgement and checkpoint to the next")
    images: int = Field(512, ge=1, le=1000)
    steps: int = Field(10, ge=1)
    drop: float = Field(0.5, gt=0, lt=1, description="collapse: below this share of the best so far")
    rollbacks: int = Field(3, ge=0)


class TeacherSettings(Section):
    """The trained model that a method learns from."""

    name: str = Field(
        description="a name of the registry, the path of a model folder or of a file NAME.safetensors with NAME.json "
        "beside it, or 'none'; for a dynamic net also 'largest', its current largest sub-net, or an earlier phase"
    )
    versions: int = Field(
        0,
        ge=0,
        description="number of fixed augmented versions of each image, whose answers are computed once and cached "
        "(3.4 GB for four of CIFAR-10 and 34 layers); 0: no cache, each batch is newly augmented",
    )


class Search(Section):
    """RNAS-CL's search over widths and tutors (eq. 2)."""

    space: SearchSpaceName = Field(description="s3, s5, s7, m, l, is, im or i")
    budget: Count = Field(description="MACs, such as 15M: the target of the search, a limit of the freeze")
    latency: float = Field(1.0, ge=0, description="exponent of n_f = max(E/B, B/E), E the expected MACs; 0: no term")
    tau: tuple[Positive, Positive] = (5.0, 0.056)
    noise: Literal["gumbel", "normal"] = "gumbel"
    share: float = Field(0.2, gt=0, lt=1, description="of each batch that updates the Gumbel logits")
    lr: float = Field(0.01, gt=0, description="Adam's, on the Gumbel logits")

    @model_validator(mode="after")
    def _within_the_space(self) -> Search:
        space = search_space(self.space)
        low, high = cost(space.smallest).macs, cost(space.largest).macs
        if self.budget < low:
            raise ValueError(
                f"space {self.space} has no network within {format_count(self.budget)} MACs: "
                f"its networks have {format_count(low)} to {format_count(high)}"
            )
        return self


class Supernet(Section):
    """Training of a dynamic net (ProARD): which sub-nets a step trains, and on which adversarial images."""

    space: SpaceName = Field(description="tiny, resnet or mbv3")
    largest: float = Field(1.0, ge=0, le=1, description="share of the steps that train the largest sub-net ...")
    smallest: bool = Field(True, description="... and the smallest in all: the sandwich rule (Yu and Huang 2019)")
    random: int = Field(2, ge=0, description="sub-nets drawn beside them")
    draw: Literal["choices", "macs"] = Field(
        "choices",
        description="what those are drawn evenly over: the choices for each gene, or the logarithm of MACs, which "
        "draws small ones more often",
    )
    redraw: Literal["step", "epoch"] = Field("step", description="how long the drawn ones stay; ProARD's code: epoch")
    elastic: tuple[Literal["width", "depth", "kernel", "expand"], ...] = Field(
        ("width", "depth", "kernel", "expand"), description="what varies; all else is as in the largest sub-net"
    )
    choices: int | None = Field(None, ge=1, description="only so many choices of the kind that elastic names last")
    opening: tuple[Share, Share] = Field(
        (0.0, 0.0), description="shares of the run between which smaller choices become available"
    )
    attacker: Literal["each", "largest", "random"] = Field(
        "each", description="each sub-net attacks itself, or all sub-nets of a step share the images of one"
    )
    refine: int = Field(0, ge=0, description="PGD steps that each sub-net adds to the shared images")
    own: AnyMethod | None = Field(
        None, description="the method of the largest sub-net where it is the teacher, and so has no teacher itself"
    )
    sort: bool = Field(False, description="sort channels by importance first, as ProARD does before expand opens")

    @model_validator(mode="after")
    def _makes_sense(self) -> Supernet:
        if self.largest < 1 and not (self.smallest or self.random):
            raise ValueError("a step trains no sub-net: set largest = 1, smallest or random")
        if self.attacker == "random" and not self.random:
            raise ValueError("attacker = 'random' needs a sub-net drawn at random: set random = 1 or more")
        if self.attacker == "each" and self.refine:
            raise ValueError("refine needs shared images: set attacker = 'largest' or 'random', or refine = 0")
        if self.opening[0] > self.opening[1]:
            raise ValueError("opening ends before it begins: give two shares in ascending order")
        return self


class Predictor(Section):
    """The accuracy-robustness predictor of a dynamic net, fitted after the training to measured sub-nets."""

    subnets: int = Field(300, ge=20, description="sub-nets measured")
    images: int = Field(1000, ge=10, le=1000, description="held-out training images to measure each sub-net on")
    steps: int = Field(10, ge=1, description="of PGD")
    members: int = Field(5, ge=2, description="of the ensemble")


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    description: str
    family: str
    paper: str | None = None
    dataset: DatasetName = Field("cifar10", description="a name of zoo.datasets; it completes [arch]")
    start: str | None = Field(None, description="a name or a folder: the first phase starts from this model's weights")
    arch: ArchSpec = Field(description="by default the architecture of start")
    method: AnyMethod
    teacher: TeacherSettings | None = None
    train: Train
    attack: Attack = Attack()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    guard: Guard = Guard()
    search: Search | None = None
    supernet: Supernet | None = None
    predictor: Predictor = Predictor()
    reported: dict[str, Share] = Field({}, description="accuracies that the paper reports, by protocol")

    @model_validator(mode="before")
    @classmethod
    def _for_the_data_set(cls, data: Any) -> Any:
        """Classes, image size, mean and std of the data set, where the architecture does not state them."""
        arch, dataset = data.get("arch"), DATASETS.get(data.get("dataset", "cifar10"))
        return {**data, "arch": dataset.contract() | arch} if isinstance(arch, dict) and dataset else data

    @field_validator("method", "teacher", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("teacher", mode="before")
    @classmethod
    def _none_by_name(cls, value: Any) -> Any:
        return None if value in ({"name": "none"}, "none") else value

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        method, search, supernet = self.method, self.search, self.supernet
        if supernet and not method.trains_subnets():
            *others, last = (name for name, one in METHODS.items() if one.trains_subnets())
            raise ValueError(
                f"method '{method.name}' cannot train a [supernet], because it has modules that fit one sub-net only, "
                f"or updates of its own: choose {', '.join(others)} or {last}"
            )
        own = supernet.own if supernet else None
        own_attacks = own is not None and own.attacks
        if method.attacks or not own_attacks:  # else the attack is for supernet.own, which checks it
            method.check(self.attack)
        if method.needs and not self.teacher:
            raise ValueError(f"method '{method.name}' needs a teacher: set teacher.name")
        if self.teacher and not method.takes_teacher:
            known = ", ".join(name for name, one in METHODS.items() if one.takes_teacher)
            raise ValueError(f"method '{method.name}' uses no teacher: remove [teacher], or choose one of {known}")
        needs = method.needs
        if self.teacher and self.teacher.versions and (supernet or (needs and (needs.features or not needs.clean))):
            raise ValueError(
                "answers are cached on clean images only, without features, and not for a [supernet]: "
                "set teacher.versions = 0"
            )
        if self.train.epochs % method.replays:
            raise ValueError(
                f"train.epochs = {self.train.epochs} counts the replays of method '{method.name}': "
                f"choose a multiple of method.m = {method.replays}"
            )
        if search and not (isinstance(method, RnasCL) and method.hard == "natural" and method.needs):
            raise ValueError("a search needs method.name = 'rnascl' with hard = 'natural', and kl or gamma above 0")
        if self.train.int8 and (search or self.train.precision != "fp32"):
            raise ValueError(
                "train.int8 = true needs train.precision = 'fp32' (bf16 rounds more coarsely) and no search"
            )
        if supernet:
            self._fits_a_supernet(supernet)
        if self.reported and not self.paper:
            raise ValueError("reported accuracies need a paper to come from")
        if (method.attacks or own_attacks) and "step" not in self.attack.model_fields_set:
            if self.attack.norm == "l2":
                raise ValueError("the default attack.step is for norm = 'linf': set it")
            if self.attack.steps == 1:
                raise ValueError(
                    "attack.steps = 1 needs attack.step: set it, to attack.eps for most methods, or to 1.25 attack.eps "
                    "for Fast AT"
                )
        return self

    def _fits_a_supernet(self, supernet: Supernet) -> None:
        if self.search or self.train.int8:
            raise ValueError("[supernet] cannot be combined with [search] or train.int8")
        if not self.ema.recalibrate:
            raise ValueError("a dynamic net has no statistics of its own for its sub-nets: set ema.recalibrate above 0")
        if self.train.compile:
            raise ValueError("a [supernet] needs train.compile = false: its nets change with every step")
        if supernet.refine and not self.method.attacks:
            raise ValueError(f"method '{self.method.name}' trains on clean images: set supernet.refine = 0")
        unattacked = supernet.own and supernet.own.attacks and not self.method.attacks
        if supernet.attacker != "each" and (isinstance(self.method, Replayed) or unattacked):
            raise ValueError(f"method '{self.method.name}' has no attack to share: set supernet.attacker = 'each'")
        in_place = self.teacher is not None and self.teacher.name == "largest"
        if supernet.own and not in_place:
            raise ValueError("supernet.own needs teacher.name = 'largest': otherwise all sub-nets learn by [method]")
        if in_place and (needs := self.method.needs) and (needs.features or not needs.clean):
            raise ValueError(f"method '{self.method.name}' asks a frozen teacher: name one in place of 'largest'")
        if isinstance(self.method, Rrm) and self.method.student_layer:
            raise ValueError("sub-nets have other layers than the largest: remove method.student_layer")
        if in_place and supernet.largest and not supernet.own:
            raise ValueError("the largest sub-net has no teacher: set supernet.own, such as { name = 'pgd-at' }")
        if supernet.own and not supernet.largest:
            raise ValueError("supernet.largest = 0 never trains the largest sub-net: remove supernet.own")
        if supernet.own:
            if supernet.own.attacks or not self.method.attacks:  # else its settings are for [method]
                supernet.own.check(self.attack)
            if supernet.own.needs or not supernet.own.trains_subnets() or isinstance(supernet.own, Replayed):
                raise ValueError(
                    f"supernet.own needs a method without a teacher and without replays, not '{supernet.own.name}'"
                )


def parse_recipe(data: dict[str, Any], origin: str) -> Recipe:
    """The recipe with the contents ``data`` of the file ``origin``.

    Raises:
        UsageError: a key or value is wrong; the sentence names the first.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        # A misspelt key is often the reason why another is missing.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        reason = first["msg"].removeprefix("Value error, ")
        tagged = [part for part in first["loc"] if part in METHODS]
        tags = [*tagged, *(first["loc"][1:2] if first["loc"][:1] == ("arch",) else ())]  # tags of unions are not keys
        where = [str(part) for part in first["loc"] if part not in tags]
        if first["type"] == "extra_forbidden" and tagged:
            settings = [key for key in METHODS[tagged[0]].model_fields if key != "name"]
            hint = nearest(where[-1], settings) or f" (it has: {', '.join(settings) or 'none'})"
            raise UsageError(f"{origin}: method '{tagged[0]}' does not use '{'.'.join(where)}'{hint}") from None
        if first["type"] == "extra_forbidden":
            hint = nearest(where[-1], _keys_beside(first["loc"]))
            raise UsageError(f"{origin}: unknown key '{'.'.join(where)}'{hint}") from None
        if first["type"] == "model_type":
            raise UsageError(f"{origin}: '{'.'.join(where)}' must be a section: write [{'.'.join(where)}]") from None
        if first["type"] == "union_tag_not_found":
            where.append(first["ctx"]["discriminator"].strip("'"))
        if first["type"] in ("missing", "union_tag_not_found"):
            raise UsageError(f"{origin}: '{'.'.join(where)}' is missing") from None
        if first["type"] == "union_tag_invalid":
            known, tag = first["ctx"]["expected_tags"].replace("'", ""), str(first["ctx"]["tag"])
            hint = nearest(tag, known.split(", "))
            raise UsageError(f"{origin}: {'.'.join(where)} '{tag}' is unknown{hint} (known are: {known})") from None
        raise UsageError(
            f"{origin}: '{'.'.join(where)}' is wrong: {reason}" if where else f"{origin}: {reason}"
        ) from None


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema allows where an unknown one was found."""
    section: Any = Recipe
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field is not None else section
        if not hasattr(section, "model_fields"):  # a union of architectures, which a tag selects, or one with None
            members = [m for m in getattr(section, "__args__", ()) if hasattr(m, "model_fields")]
            tagged = [m for m in members if "arch" in m.model_fields and m.model_fields["arch"].default == location[1]]
            section = next(iter(tagged or members), Recipe)
    return list(section.model_fields)
