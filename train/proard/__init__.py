"""ProARD: one dynamic net whose sub-nets are robust students for any budget (Mousavi et al. 2025)."""
