"""Evaluation of robustness: protocols, measurements and statistics."""
