"""Methods of `StoredStudy` that export trials: as JSON, TOML, CSV and Parquet, and as the runs of a tracker.

`StoredStudy` binds these functions as its methods.
"""

from __future__ import annotations

from typing import Any, Literal

from hpo.api.queueing import Stored
from hpo.text import printable


def export(study: Stored, confirmed: bool = False, trial: int | None = None, ensemble: bool = False) -> dict[str, Any]:
    """Return the best trial as the JSON object that `hpo export` writes, `hpo.best/3`.

    Of an objective study it is `hpo.objective/2`, of a study of another program `hpo.optuna/1`. `config` is a study
    of that trial alone, and `hpo.replay` retrains the trial from a file of the object. With `confirmed` it is the
    winner of the confirmation, with its estimates; with `trial`, the completed trial of that number. Of several
    metrics it is `hpo.front/1`, whose `front` has such an object for each trial on the Pareto front. With
    `ensemble` it is `hpo.ensemble/1`, whose `members` have such objects. Raises HpoError where there is no such
    trial or ensemble.
    """
    from hpo.results.export.best import export
    from hpo.results.export.ensemble import export_ensemble

    if ensemble:
        return export_ensemble(study._storage, study.name)
    return export(study._storage, study.name, confirmed, trial)


def export_text(
    study: Stored,
    *,
    confirmed: bool = False,
    every: bool = False,
    top: int | None = None,
    trial: int | None = None,
    ensemble: bool = False,
    form: Literal["json", "toml", "csv"] = "json",
) -> str:
    """Return the text that `hpo export` writes: the best, `every` trial, the `top` best, one `trial` or `ensemble`.

    Raises UsageError for arguments that contradict each other, and HpoError where there is no such trial.
    """
    from hpo.results.export.text import export_text

    return export_text(
        study._storage,
        study.name,
        confirmed=confirmed,
        every=every,
        top=top,
        trial=trial,
        ensemble=ensemble,
        form=form,
    )


def export_parquet(
    study: Stored,
    *,
    confirmed: bool = False,
    every: bool = False,
    top: int | None = None,
    trial: int | None = None,
    ensemble: bool = False,
) -> bytes:
    """Return the content of the Parquet file that `hpo export` writes: the columns of CSV, and learning curves.

    The arguments are those of `export_text`; `confirmed`, `trial` and `ensemble`, of one object, are a UsageError.
    """
    from hpo.results.export.parquet import export_parquet

    return export_parquet(
        study._storage, study.name, confirmed=confirmed, every=every, top=top, trial=trial, ensemble=ensemble
    )


def export_to(study: Stored, tracker: str) -> str:
    """Write every trial as a run to a tracker, such as "mlflow:URI"; return a line that says so.

    The study is the experiment. Runs that are there already are not written again, so the call can be repeated.
    `tracker` is mlflow[:URI], tensorboard[:FOLDER], wandb[:PROJECT] or trackio[:PROJECT]. Raises UsageError for any
    other, and HpoError where the tracker is not installed or cannot be reached.
    """
    from hpo.tracking.sync import export_to
    from hpo.tracking.targets import parse_targets

    (target,) = parse_targets([tracker], "--to")
    return printable(export_to(study._storage, study.name, target))
