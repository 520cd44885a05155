"""Training: the schedule, the optimizer, the compiled steps and checkpoints."""
