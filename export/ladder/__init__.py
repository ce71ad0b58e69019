"""The ladder: what an engine is shown to withstand."""
