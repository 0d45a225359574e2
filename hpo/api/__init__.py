"""The Python API: what `import hpo` offers, and the one thing that the command line is built on.

    study.py      studies as Python objects, and from files
    sections.py   a study's sections
    running.py    launch, submit, work
    view.py       what a stored study holds: its trials, curves, export, figures, report
    stored.py     a stored study in hand: what is done with it after a search
    queue.py      who works on what
    answers.py    what a command has found: a record, and how it reads
    arrays.py     learning curves as NumPy arrays
    comparing.py  configurations beside each other
    models.py     trained networks and exports, from their files alone
    machine.py    this machine: data sets, dashboard, health, versions
    files.py      files that are written whole or not at all
    displays.py   what shows progress: in a notebook, on a terminal, in a log
    stopping.py   Ctrl-C

Promises: importing any module here loads neither torch, Optuna, NumPy nor a database; what needs them imports them when
it is called. Whatever goes wrong that a user can act on is an `hpo.HpoError`, whose text is one line.
"""
