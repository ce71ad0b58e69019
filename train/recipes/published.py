"""The recipes that ship with the package. Nothing here imports torch: the command line completes and refuses names."""

from __future__ import annotations

from pathlib import Path

from zoo.system.errors import UsageError, nearest

RECIPES = Path(__file__).parent
RENAMED = {"nfgsm-p4": "ard-p4-w15", "nfgsm-p12": "ard-p12-w15", "nfgsm-p30": "ard-p30-w15"}


def published_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def recipe_file(source: str | Path) -> Path:
    """The file of the recipe ``source``: a path, or the name of a published recipe.

    Raises:
        UsageError: there is neither; the message suggests the nearest names.
    """
    if Path(source).is_file():
        return Path(source)
    name = Path(source).name.removesuffix(".toml")
    name = RENAMED.get(name, name)
    published = published_recipes()
    if name in published:
        return published[name]
    raise UsageError(f"no recipe file '{source}', nor a published recipe of that name{nearest(name, published)}")
