"""The registry of released models, and how to pick one."""
