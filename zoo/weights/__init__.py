"""From a name to a model with its weights."""
