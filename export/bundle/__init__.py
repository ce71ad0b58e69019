"""The folder that an export leaves."""
