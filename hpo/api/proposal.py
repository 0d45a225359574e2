"""The next study that `StoredStudy.narrow` proposes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpo.api.study import Study


@dataclass(frozen=True)
class Proposal:
    """The next study that `narrow` proposes, and lines of text with the reason for each of its ranges."""

    study: Study
    lines: tuple[str, ...]

    def write(self, path: str | Path | None = None) -> Path:
        """Write the study to a file, by default `NAME.toml` in the current folder; return the path.

        Raises HpoError where the file exists and contains another study.
        """
        from hpo.results.narrow.next_study import write_study

        return write_study(self.study.checked, self.lines, None if path is None else Path(path))
