"""Optimizers and learning-rate schedules with hyperparameters per member, over blocks of parameters."""
