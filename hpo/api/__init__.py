"""The Python API, behind `import hpo`; the command line uses nothing else of hpo.

Importing a module of it loads neither torch, Optuna, NumPy nor a database: functions import these when they are called.
Every error that a user can act on is an `hpo.HpoError`, whose text is one line.
"""
