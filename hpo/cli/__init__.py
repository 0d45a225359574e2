"""The `hpo` command: each command parses, makes one call, and prints.

Machine output is on stdout, everything else on stderr. Help answers at once: torch, Optuna, NumPy and the database are
imported by the commands that need them, never at the top of a module here.
"""

# In the order of `hpo --help`: each adds its commands to the application.
from hpo.cli import searching  # isort: split

from hpo.cli import queue  # isort: split

from hpo.cli import results  # isort: split

from hpo.cli import testing  # isort: split

from hpo.cli import machine  # isort: split

from hpo.cli.app import app
from hpo.cli.entry import main

__all__ = ["app", "machine", "main", "queue", "results", "searching", "testing"]
