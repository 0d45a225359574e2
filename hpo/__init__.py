"""hpo: hyperparameter search for PyTorch networks that trains whole populations of trials at once.

Importing it costs nothing: torch, Optuna and the database are loaded by the commands that need them.
"""

__version__ = "0.1.0"
