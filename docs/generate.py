"""Rewrite the generated parts of the reference: study file keys, their JSON Schema, commands, source tree.

    python docs/generate.py

Run it after a change of a study file key, a command's help, or the first line of a module's docstring. Tests compare
the pages with the program.
"""

from __future__ import annotations

import command_lists
import source_tree
import study_file_schema
import study_file_tables

for each in (study_file_tables, study_file_schema, command_lists, source_tree):
    each.PAGE.write_text(each.rewritten(each.PAGE.read_text()))
