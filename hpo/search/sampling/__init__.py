"""Optuna's samplers and pruners by name, and the study as they see it."""
