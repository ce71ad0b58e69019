"""RNAS-CL: robust architecture search by cross-layer distillation (Nath et al.; papers' equations in each module)."""
