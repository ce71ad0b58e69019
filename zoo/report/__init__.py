"""The page to choose from: a static site made from a registry and bundles."""
