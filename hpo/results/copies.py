"""What `hpo copy` does, and says of it.

The copy is made in the storage (`hpo.storage.copying`); what is added here is what only hpo knows: a study file is kept
with the study, and says its name. Studies of other programs are copied just the same.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

from hpo.search.records import STUDY
from hpo.storage import Storage, copy_study, load_study, open_storage
from hpo.studyfile import parse_any_study


def copy_line(source: Storage, name: str, to: str, new_name: str | None) -> str:
    """Copy the study of that name to the storage at the URL `to`; return the line that says so."""

    def renamed(text: Any) -> Any:
        if not isinstance(text, str) or new_name is None:
            return text
        tree = json.loads(text) | {"name": new_name}
        parse_any_study(tree, f"study {name!r}")  # not every name can be a study file's
        return json.dumps(tree)

    load_study(source, name)  # where there is none, no file is made for its copy
    with closing(open_storage(to)) as target:
        copied = copy_study(source, name, target, new_name, {STUDY: renamed})
        wait = "wait" if copied.running > 1 else "waits"
        waiting = f", {copied.running} of them running, which {wait} there" if copied.running else ""
        called = "" if new_name is None else f" as {new_name!r}"
        return f"{name}: {copied.trials} trials copied to {target.shown}{called}{waiting}"
