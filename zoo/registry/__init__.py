"""The registry of released models, and the choice among them."""
