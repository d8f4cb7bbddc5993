"""State, step, loop and checkpoints of a run."""
