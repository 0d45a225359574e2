"""The study that follows one whose ranges are narrowed: proposed from a storage, and written as a file.

It is the old one with narrower ranges, another name and seed, and starts from the old one's trials
(`search.start_from`), and from those that the old one started from. Promises: what is written reads back as what was
proposed; a file that says anything else is left alone. Stores nothing, and launches nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hpo.errors import HpoError, StudyFileError, UsageError
from hpo.files import write_atomically
from hpo.results.naming import file_stem, with_suffix
from hpo.results.narrow.ranges import Best, Change, best_few, changes
from hpo.results.ranking import METRIC_LABELS
from hpo.results.unranked import no_best_trial
from hpo.search.sampling.warm_start import completed, warm_start
from hpo.search.study_records import stored_study, user_attrs_of
from hpo.storage import Storage, load_study
from hpo.studyfile import AnyStudy, Study, parse_study, read_study, user_data
from hpo.studyfile.messages import dotted_key
from hpo.studyfile.trees import replaced
from hpo.studyfile.values import MAX_INT
from hpo.studyfile.writing import study_text


def propose(storage: Storage, name: str, new_name: str | None = None) -> tuple[Study, tuple[str, ...]]:
    """Return the next study after the one of that name, and lines with the reasons for its ranges.

    Raises HpoError where too few trials have completed.
    """
    stored = load_study(storage, name)
    study = stored_study(stored)
    if len(study.search.metrics) > 1:
        raise HpoError(
            f"study '{name}': has several metrics, and what is best by one is not by the others, so there is no one "
            "place to narrow to; search again with a single metric, or with ranges of your own"
        )
    before = warm_start(study, user_attrs_of(stored), storage)
    known = [*completed(storage, name), *before.trials]
    if not known:
        raise no_best_trial(storage, name, "there is nothing to narrow")
    best = best_few(study, known)
    found = changes(study, best.params)
    lines = [f"{problem}; its trials are left out" for problem in before.problems]
    lines += [_around(study, best)]
    lines += [change.line() for change in found] or ["every range stays as it is: the best lie all over it"]
    called = next_name(study) if new_name is None else new_name
    return following(study, found, called, [name, *before.names]), tuple(lines)


def following(study: Study, found: Sequence[Change], name: str, start_from: Sequence[str]) -> Study:
    """Return the study with these changes, under this name, that starts from these studies."""
    tree = study.resolved()
    for change in found:
        tree = replaced(tree, change.parameter.path, change.new.tree())
    tree["name"] = name
    tree["search"] |= {
        "points": [],  # they have been tried
        "seed": (study.search.seed + 1) % (MAX_INT + 1),  # random sampling does not say the same again
        "start_from": list(start_from),
    }
    return parse_study(tree, f"study '{name}'", study.folder)


def _around(study: Study, best: Best) -> str:
    minimized = study.search.minimized
    reached = f"{METRIC_LABELS[study.search.first_metric]} {best.threshold:.4f} or {'less' if minimized else 'more'}"
    return f"{study.name}: around the best {len(best.params)} of {best.of} different trials ({reached})"


def next_name(study: Study) -> str:
    """Return `digits-2` for `digits`, and `digits-3` for that one: a number is counted up where narrowing gave it."""
    match = re.fullmatch(r"(.+)-([0-9]+)", study.name)
    base, number = (match[1], int(match[2])) if match else ("", 0)
    if base not in study.search.start_from:
        base, number = study.name, 1
    return with_suffix(base, f"-{number + 1}")


def write_study(study: AnyStudy, reasons: Sequence[str], path: Path | None = None) -> Path:
    """Write the proposed study to a file, by default `NAME.toml` in the current folder; return the path.

    Raises HpoError where the file exists and contains another study.
    """
    assert isinstance(study, Study), "an objective study has no ranges to narrow"
    target = Path(f"{file_stem(study.name)}.toml") if path is None else path
    study = _for_folder(study, target.absolute().parent)
    if target.suffix.lower() == ".json":
        raise UsageError(f"{target}: the study is written as TOML; give the file a name that ends in .toml")
    if target.is_file():
        if not _says(target, study):
            raise HpoError(f"{target}: is there already and says something else; give another file with -o")
        return target
    head = "".join(f"# {line}\n" for line in reasons)
    write_atomically(head + study_text(study), target)
    return target


def _for_folder(study: Study, folder: Path) -> Study:
    """Return the study as a file in that folder has to say it: it finds the user's own images and code from there.

    Raises HpoError where the code is searched: another path would be another choice, and what is known of it lost.
    """
    kept, tree = study.folder.resolve(), study.resolved()
    if folder.resolve() == kept:
        return study

    def moved(path: str) -> str:
        return path if Path(path).is_absolute() else os.path.relpath(kept / path, folder.resolve()).replace(os.sep, "/")

    kind, path = user_data(study.data.dataset) or ("", "")
    if kind == "code":
        tree = replaced(tree, ("data", "dataset"), moved(path))
    elif kind and (kept / path).exists():  # else they were in the current folder
        tree = replaced(tree, ("data", "dataset"), f"{kind}:{moved(path)}")
    for place, module in study.definitions(("network", "module")).items():
        if isinstance(module, dict):
            raise HpoError(
                f"{dotted_key(place)}: is searched among files in {kept}: write the next study there with -o"
            )
        if module is not None:
            tree = replaced(tree, place, moved(module))
    return parse_study(tree, study.source, folder)


def _says(path: Path, study: Study) -> bool:
    try:
        return read_study(path) == study
    except StudyFileError:
        return False
