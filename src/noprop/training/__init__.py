"""Training, checkpoints, run folders and evaluation: they know only units and methods."""
