"""What a training step costs, in passes over the network."""

from __future__ import annotations

from zoo.train.recipes.schema import Recipe


def passes(recipe: Recipe) -> int:
    """Passes over the network for an image of a batch: a forward counts one, a backward two, one to the input one.

    Of a search, whose logits see a fifth of the images, this is a little too much.
    """
    attack = 2 * recipe.attack.steps
    return {"natural": 3, "n-fgsm": 3 + attack, "pgd-at": 3 + attack}.get(recipe.train.method, 6 + attack)
