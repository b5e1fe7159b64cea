"""Training of one group of units: plan, trainer, gradients, state, commits, mesh and events."""
