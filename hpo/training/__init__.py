"""Train populations: K trials' hyperparameters in, K learning curves out.

This package works with tensors. It imports nothing of Optuna and no database code.
"""
