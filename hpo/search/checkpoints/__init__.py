"""Checkpoints: weights of the best trials, and training states from which trials continue."""
