"""Architecture specs: small, immutable and JSON-serialisable, with their analytic cost.

A spec includes the input contract (size, mean, std, classes), so that a spec and its weights are enough to rebuild a
model. A family is a file here and one in :mod:`zoo.models`, both named after its ``arch`` tag. To add a family, write
both files and add its spec to ``ArchSpec``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from zoo.specs.alexnet import AlexNetSpec
from zoo.specs.base import Cost, Spec, bounded
from zoo.specs.bottleneck import BottleneckSpec
from zoo.specs.mobilenetv2 import MobileNetV2Spec
from zoo.specs.mobilenetv3 import MobileNetV3Spec
from zoo.specs.resnet import ResNetSpec
from zoo.specs.staged import StagedSpec
from zoo.specs.vgg import VGGSpec
from zoo.specs.wideresnet import WideResNetSpec
from zoo.system.arguments import typed
from zoo.system.errors import UsageError, nearest

__all__ = [
    "AlexNetSpec",
    "ArchSpec",
    "BottleneckSpec",
    "Cost",
    "MobileNetV2Spec",
    "MobileNetV3Spec",
    "ResNetSpec",
    "Spec",
    "StagedSpec",
    "VGGSpec",
    "WideResNetSpec",
    "cost",
    "parse_spec",
]


ArchSpec = Annotated[
    StagedSpec
    | ResNetSpec
    | WideResNetSpec
    | MobileNetV2Spec
    | BottleneckSpec
    | MobileNetV3Spec
    | VGGSpec
    | AlexNetSpec,
    Field(discriminator="arch"),
    AfterValidator(bounded),
]
SPECS: dict[str, type[Spec]] = {one.model_fields["arch"].default: one for one in get_args(get_args(ArchSpec)[0])}


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(ArchSpec)


def parse_spec(data: dict[str, Any] | str) -> ArchSpec:
    """The spec that ``data`` (a dict, or its JSON text) describes.

    >>> parse_spec({"arch": "wideresnet", "depth": 34, "widen": 2}).blocks_per_stage
    5

    Raises:
        UsageError: a field is missing, unknown or out of range; the message names it.
    """
    typed(data=(data, Mapping | str))
    try:
        return _adapter().validate_json(data) if isinstance(data, str) else _adapter().validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
    if first["type"] == "json_invalid":
        raise UsageError(f"the architecture spec is not JSON: {first['msg']}")
    if first["type"] == "union_tag_not_found":
        raise UsageError(f"the architecture spec has no 'arch' (known: {', '.join(SPECS)})")
    if first["type"] == "union_tag_invalid":
        arch = str(first["ctx"]["tag"])
        raise UsageError(f"no architecture is called '{arch}'{nearest(arch, SPECS)} (known: {', '.join(SPECS)})")
    where = ".".join(str(part) for part in first["loc"]) or "spec"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 2:
        arch, key = map(str, first["loc"])
        hint = nearest(key, SPECS[arch].model_fields)
        raise UsageError(f"the architecture spec is wrong: '{arch}' has no key '{key}'{hint}")
    raise UsageError(f"the architecture spec is wrong at '{where}': {first['msg'].removeprefix('Value error, ')}")


def cost(spec: Spec) -> Cost:
    """Multiply-accumulates and parameters of ``spec``, computed by formula: no model is built.

    >>> cost(StagedSpec(widths=[[16, 16], [32]], resolutions=[16, 8], stem_resolution=16))
    Cost(macs=1585472, params=10138)

    Raises:
        TypeError: ``spec`` is not an architecture spec.
    """
    if not isinstance(spec, Spec):
        raise TypeError(f"cost() takes an ArchSpec as its spec, not {type(spec).__name__}")
    convs = list(spec.convs())
    return Cost(sum(conv.macs for conv in convs), sum(conv.params for conv in convs))
