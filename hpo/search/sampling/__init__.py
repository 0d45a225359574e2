"""Sampling and pruning: Optuna's samplers and pruners by name, and the in-memory study that they read."""
