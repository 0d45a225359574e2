"""Which hyperparameters next: the space, samplers and pruners by name, and the loop that asks, trains and tells.

Knows Optuna, and nothing of layers or SQL.
"""
