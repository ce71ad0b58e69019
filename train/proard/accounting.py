"""The cost of a training in multiply-accumulates, of a dynamic net or of a single net.

A forward pass counts the MACs of an image once and a backward pass twice, or once for the gradient of the image alone.
So a PGD step has 2 passes and a training step 3.
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
    """Multiply-accumulates of the training of a dynamic net, by phase.

    Args:
        images: the size of the training split; ``train.images`` of a recipe takes precedence.
    """
    return {
        phase: recipe.train.epochs * (recipe.train.images or images) * per_image(recipe, phases)
        for phase, recipe in phases.items()
    }


def per_image(recipe: Recipe, phases: Container[str] = ()) -> float:
    """Multiply-accumulates for an image that a step of the dynamic net sees, on average over steps.

    Args:
        phases: the names of the recipe's phases, any earlier one of which may be the teacher.
    """
    settings = recipe.supernet
    assert settings is not None
    space = space_called(settings.space)
    largest = float(space.macs(space.largest)[0])
    others, attacker = _drawn_macs(space, recipe)
    method, teacher = recipe.method, recipe.teacher.name if recipe.teacher else None
    own, attack = settings.own or method, method.attack_passes(recipe.attack)
    total = 3 * (own.forwards * settings.largest * largest + method.forwards * others)
    if settings.attacker == "each":
        total += attack * others + own.attack_passes(recipe.attack) * settings.largest * largest
    else:
        total += attack * (attacker if settings.attacker == "random" else largest)
        total += 2 * settings.refine * (others + settings.largest * largest)
    if teacher == "largest":  # one forward pass of clean images, for all replays
        total += (largest if others else 0) / method.replays
    elif teacher:
        asked = method.teacher_passes(recipe.attack)
        if method.needs and not method.needs.clean:  # each sub-net asks by itself, and so does each attack
            nets, shared = settings.largest + settings.smallest + settings.random, settings.attacker != "each"
            asked = nets * (asked + 2 * settings.refine) - shared * (nets - 1) * attack
        total += asked * (largest if teacher in phases else _macs_of(teacher))
    return total


def per_image_alone(recipe: Recipe) -> float:
    """Multiply-accumulates for an image in an update of a single net, with the teacher's."""
    method, attack = recipe.method, recipe.attack
    teacher = _macs_of(recipe.teacher.name) if recipe.teacher and method.needs else 0
    return method.passes(attack) * cost(recipe.arch).macs + method.teacher_passes(attack) * teacher


def _macs_of(teacher: str) -> int:
    return cost(find(teacher, folders=True, pretrained=False).spec).macs


def _drawn_macs(space: Space, recipe: Recipe) -> tuple[float, float]:
    """Mean MACs over steps: of all sub-nets but the largest together, and of the last sub-net."""
    settings, rng = recipe.supernet, np.random.default_rng(0)
    assert settings is not None
    if not settings.smallest and not settings.random:
        return 0.0, 0.0
    steps = [space.macs(drawn(space, settings, (one + 0.5) / DRAWS, rng)) for one in range(DRAWS)]
    return float(np.mean([step.sum() for step in steps])), float(np.mean([step[-1] for step in steps]))
