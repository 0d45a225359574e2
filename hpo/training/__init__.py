"""What a population does: K trials' hyperparameters in, their learning curves out.

Knows tensors, and nothing of Optuna or databases.
"""
