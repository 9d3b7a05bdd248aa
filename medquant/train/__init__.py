"""Training runs: stages, checkpoints, the run folder, and what follows training."""
