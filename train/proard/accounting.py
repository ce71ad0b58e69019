"""What a training costs, in multiply-accumulates: one dynamic net against a separate training for every budget.

A forward pass of an image counts its MACs once, the backward pass twice, and once where only the image's gradient is
asked for: a PGD step is 2 passes, a training step 3 for each batch of images that it sees.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from zoo.specs import cost
from zoo.train.proard.sampling import drawn
from zoo.train.recipes.schema import Recipe
from zoo.train.spaces import space_called
from zoo.train.spaces.dynamic import Space
from zoo.weights.load import find

DRAWS = 2000


def spent(phases: Mapping[str, Recipe], images: int) -> dict[str, float]:
    """Multiply-accumulates of the training of a dynamic net, by phase, on a training split of so many images, or on
    the leading ones that a recipe wants."""
    return {
        phase: recipe.train.epochs * (recipe.train.images or images) * per_image(recipe, phases)
        for phase, recipe in phases.items()
    }


def per_image(recipe: Recipe, phases: Container[str] = ()) -> float:
    """Multiply-accumulates for an image that a step of the dynamic net sees, on average over steps.

    Args:
        phases: names by which the recipe may call the largest sub-net of an earlier phase its teacher.
    """
    settings = recipe.supernet
    assert settings is not None
    space = space_called(settings.space)
    largest = float(space.macs(space.largest)[0])
    others, attacker = _drawn_macs(space, recipe)
    method, teacher = recipe.method, recipe.teacher.name if recipe.teacher else None
    attack = method.attack_passes(recipe.attack)
    total = 3 * ((settings.own or method).forwards * settings.largest * largest + method.forwards * others)
    if settings.attacker == "each":
        total += attack * (others + settings.largest * largest)
    else:
        total += attack * (attacker if settings.attacker == "random" else largest)
        total += 2 * settings.refine * (others + settings.largest * largest)
    if teacher == "largest":  # one forward pass of clean images
        total += largest if others else 0
    elif teacher:
        total += largest if teacher in phases else _macs_of(teacher)
    return total


def per_image_alone(recipe: Recipe) -> float:
    """Multiply-accumulates for an image that a step of a net trained by itself sees, its teacher's pass included."""
    teacher = _macs_of(recipe.teacher.name) if recipe.teacher and recipe.method.needs else 0
    return recipe.method.passes(recipe.attack) * cost(recipe.arch).macs + teacher


def _macs_of(teacher: str) -> int:
    return cost(find(teacher, folders=True, pretrained=False).spec).macs


def _drawn_macs(space: Space, recipe: Recipe) -> tuple[float, float]:
    """Mean MACs of all sub-nets of a step but the largest together, and of the last of them."""
    settings, rng = recipe.supernet, np.random.default_rng(0)
    assert settings is not None
    if not settings.smallest and not settings.random:
        return 0.0, 0.0
    steps = [space.macs(drawn(space, settings, (one + 0.5) / DRAWS, rng)) for one in range(DRAWS)]
    return float(np.mean([step.sum() for step in steps])), float(np.mean([step[-1] for step in steps]))
