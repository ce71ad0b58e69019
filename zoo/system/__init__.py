"""Shared by the whole package: errors, units, files, devices, the Hub."""
