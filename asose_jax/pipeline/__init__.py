"""A run from its config to its summary: phases, growth, evaluation and checkpoints."""
