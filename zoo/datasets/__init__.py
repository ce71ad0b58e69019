"""The data sets that models are trained and judged on."""
