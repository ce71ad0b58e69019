"""Frozen dataclasses for stored JSON. Their bounds are used only when a file is validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar


class Bounds:
    """Limits on a field, by their pydantic-core names; only validation uses them."""

    def __init__(self, **limits: Any) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), **self.limits}


Count = Annotated[int, Bounds(ge=0)]
Amount = Annotated[float, Bounds(ge=0)]
Share = Annotated[float, Bounds(ge=0, le=1)]
Text = Annotated[str, Bounds(min_length=1)]
Line = Annotated[str, Bounds(pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, Bounds(pattern=r"^[^\s\x00-\x1f\x7f/\\:.-][^\s\x00-\x1f\x7f/\\:]*$")]  # it is used in paths
Sha256 = Annotated[str, Bounds(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base class of stored records: unknown fields, NaN and infinity are refused."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
