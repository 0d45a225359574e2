"""Next study: a study with narrower ranges, proposed from a stored one, and its study file.

The next study has another name and seed; it starts from the trials of the stored study (`search.start_from`) and from
those that the stored study started from. The written file reads back as the proposed study; a file with another study
is never overwritten. Nothing is stored or launched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import TrialState

from hpo.errors import HpoError, StudyFileError, UsageError
from hpo.files import write_atomically
from hpo.memory_code import is_in_memory
from hpo.results.derived_names import file_stem, with_suffix
from hpo.results.narrow.ranges import Best, Change, best_configurations, changes
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import metric_label
from hpo.search.sampling.warm_start import ranked, warm_start
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
            f"study '{name}': has several metrics, whose best trials differ, so no ranges can be proposed; search "
            "again with a single metric, or set the ranges yourself"
        )
    before = warm_start(study, user_attrs_of(stored), storage)
    known = [*ranked(storage, name), *before.trials]
    if not any(trial.state == TrialState.COMPLETE for trial in known):
        raise no_best_trial(storage, name, "there is nothing to narrow")
    best = best_configurations(study, known)
    found = changes(study, best.params)
    lines = [f"{problem}; its trials are not used" for problem in before.problems]
    lines += [_around(study, best)]
    lines += [change.line() for change in found] or ["every range stays as it is: the best trials lie all over it"]
    called = next_name(study) if new_name is None else new_name
    return changed_study(study, found, called, [name, *before.names]), tuple(lines)


def changed_study(study: Study, found: Sequence[Change], name: str, start_from: Sequence[str]) -> Study:
    """Return the study with these changes, under another name, that starts from these studies."""
    tree = study.resolved()
    for change in found:
        tree = replaced(tree, change.parameter.path, change.new.tree())
    tree["name"] = name
    tree["search"] |= {
        "points": [],  # already tried
        "seed": (study.search.seed + 1) % (MAX_INT + 1),  # random sampling draws other values
        "start_from": list(start_from),
    }
    return parse_study(tree, f"study '{name}'", study.folder)


def _around(study: Study, best: Best) -> str:
    minimized = study.search.minimized
    reached = f"{metric_label(study.search.first_metric)} {best.threshold:.4f} or {'less' if minimized else 'more'}"
    pruned = f", {best.pruned} of them pruned by halving and ranked by the last rung" if best.pruned else ""
    return f"{study.name}: around the best {len(best.params)} of {best.of} different configurations ({reached}{pruned})"


def next_name(study: Study) -> str:
    """Return `digits-2` for `digits` and `digits-3` for `digits-2`; only a number that narrowing gave is increased."""
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
        raise UsageError(f"{target}: the study is written as TOML; use a file name that ends in .toml")
    if target.is_file():
        if not _contains(target, study):
            raise HpoError(f"{target}: exists and contains something else; name another file with -o")
        return target
    head = "".join(f"# {line}\n" for line in reasons)
    write_atomically(head + study_text(study), target)
    return target


def _for_folder(study: Study, folder: Path) -> Study:
    """Return the study with the paths of user data and code relative to another folder.

    Raises HpoError where the code is a searched choice: another path would be another choice, without known trials.
    """
    old, tree = study.folder.resolve(), study.resolved()
    if folder.resolve() == old:
        return study

    def relative(path: str) -> str:
        if Path(path).is_absolute() or is_in_memory(path):
            return path
        return os.path.relpath(old / path, folder.resolve()).replace(os.sep, "/")

    kind, path = user_data(study.data.dataset) or ("", "")
    if kind == "code":
        tree = replaced(tree, ("data", "dataset"), relative(path))
    elif kind and (old / path).exists():  # else the path is relative to the current folder
        tree = replaced(tree, ("data", "dataset"), f"{kind}:{relative(path)}")
    for key, file in (("validation", study.data.validation), ("test", study.data.test)):
        if isinstance(file, str) and (old / file).exists():
            tree = replaced(tree, ("data", key), relative(file))
    for place, module in study.definitions(("network", "module")).items():
        if isinstance(module, dict):
            raise HpoError(f"{dotted_key(place)}: is searched among files in {old}: write the next study there with -o")
        if module is not None:
            tree = replaced(tree, place, relative(module))
    return parse_study(tree, study.source, folder)


def _contains(path: Path, study: Study) -> bool:
    try:
        return read_study(path) == study
    except StudyFileError:
        return False
