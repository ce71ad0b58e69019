"""What the rest of the house stands on: errors, units, files, devices, the Hub."""
