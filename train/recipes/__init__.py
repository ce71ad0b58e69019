"""Recipes: what they may say, and a TOML file for each released model."""
