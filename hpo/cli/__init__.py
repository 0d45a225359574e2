"""The `hpo` command: each command parses its options, makes one call of `hpo`, and prints the result.

    search.py           searches in this process: launch, check, narrow
    results.py          results of a stored study: top, confirm, test, export ...
    service.py          the queue and its workers: submit, work, status, pause ...
    machine.py          this machine: doctor, data, version

Results are printed on stdout, everything else on stderr. Help takes no noticeable time: torch, Optuna, NumPy and the
database are imported by the commands that need them, never at the top of a module here.
"""

# Imported in the order of `hpo --help`: each module adds its commands to the application.
from hpo.cli import search  # isort: split

from hpo.cli import results  # isort: split

from hpo.cli import service  # isort: split

from hpo.cli import machine  # isort: split

from hpo.cli.app import app
from hpo.cli.entry import main

__all__ = ["app", "machine", "main", "results", "search", "service"]
