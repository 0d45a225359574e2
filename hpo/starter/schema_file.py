"""The JSON Schema of study files, and its copy beside a study file for editors.

The schema is part of the package (hpo/studyfile/study-file.schema.json). Editors cannot find an installed package, so a
study file names a copy in its own folder, which also works on other machines.
"""

from __future__ import annotations

import json
from pathlib import Path

from hpo import studyfile
from hpo.errors import HpoError
from hpo.files import write_atomically

COPY = "hpo-study.schema.json"
"""File name of the copy."""

DIRECTIVE = f"#:schema ./{COPY}"
"""First line of a study file with a copy beside it."""


def schema_text() -> str:
    """Return the JSON Schema as JSON text."""
    return (Path(studyfile.__file__).parent / "study-file.schema.json").read_text(encoding="utf-8")


def check_copy(folder: Path) -> None:
    """Raise HpoError where the folder has another file of the copy's name."""
    path = folder / COPY
    foreign = HpoError(f"{path}: exists and is no schema of hpo; rename or remove it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise foreign from error
    if not isinstance(found, dict) or found.get("title") != json.loads(schema_text())["title"]:
        raise foreign


def write_copy(folder: Path) -> None:
    """Write the copy into the folder, in the place of an older one. Raises HpoError where it cannot be written."""
    check_copy(folder)
    if not (folder / COPY).exists() or (folder / COPY).read_text(encoding="utf-8") != schema_text():
        write_atomically(schema_text(), folder / COPY)
