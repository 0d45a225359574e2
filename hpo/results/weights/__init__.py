"""Weights of configurations: those of a trial's checkpoint, or newly trained ones."""
