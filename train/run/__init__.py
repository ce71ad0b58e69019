"""One run of a recipe: the loop, its network, average, schedule and checkpoints."""
