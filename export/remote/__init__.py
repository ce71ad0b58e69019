"""Engines on other machines: the artifact goes over, batches stream through a pipe, logits come back."""
