"""RNAS-CL: robust architecture search by cross-layer distillation (Nath et al. 2023)."""
