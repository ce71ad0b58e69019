"""Training methods: what a step attacks and minimises."""
