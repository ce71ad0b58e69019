"""Addresses, model folders, loading and releases."""
