"""Text of an export: JSON or TOML of one trial or the Pareto front, JSON lines or CSV of several trials.

Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity" in every format. A missing value is null
in JSON, an empty cell in CSV, and left out in TOML.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tomli_w

from hpo.errors import UsageError
from hpo.results.export.best import export
from hpo.results.export.ensemble import export_ensemble
from hpo.results.export.trials import trial_records
from hpo.storage import Storage
from hpo.studyfile.messages import dotted_key
from hpo.studyfile.trees import Path
from hpo.text import encode_non_finite, escape_toml, json_text, printable_lines, utc_text

FIRST_COLUMNS = ("number", "state", "value", "seed", "epochs", "precision", "device", "started", "ended", "reason")
"""The columns of every table; those of further metrics and of the parameters follow."""


def export_text(
    storage: Storage,
    name: str,
    *,
    confirmed: bool = False,
    every: bool = False,
    top: int | None = None,
    trial: int | None = None,
    ensemble: bool = False,
    form: str = "json",
) -> str:
    """Return the export of the best trial, the `confirmed` winner, `every` trial, the `top` best or one `trial`.

    With `ensemble` it is that of the study's ensemble. `form` is json, toml or csv. Raises UsageError for options that
    exclude each other.
    """
    several = check_options(form, confirmed=confirmed, every=every, top=top, trial=trial, ensemble=ensemble)
    if form == "csv":
        return csv_text(trial_records(storage, name, every=every, top=top))
    if several:
        return json_lines(trial_records(storage, name, every=every, top=top))
    tree = export_ensemble(storage, name) if ensemble else export(storage, name, confirmed, trial)
    return escape_toml(tomli_w.dumps(_without_nulls(tree))) if form == "toml" else json_text(tree, indent=2) + "\n"


def check_options(
    form: str, *, confirmed: bool, every: bool, top: int | None, trial: int | None, ensemble: bool
) -> bool:
    """Return whether several trials are exported. Raises UsageError for options that exclude each other."""
    options = {"--all": every, "--top": top is not None, "--trial": trial is not None, "--confirmed": confirmed}
    options["--ensemble"] = ensemble
    given = [option for option, is_given in options.items() if is_given]
    if len(given) > 1:
        raise UsageError(f"{given[0]} excludes {given[1]}: give one of them")
    several = every or top is not None
    if form == "toml" and several:
        raise UsageError(f"--format toml holds one trial, but {given[0]} exports several: use json or csv")
    if form in ("csv", "parquet") and given and not several:
        raise UsageError(f"--format {form} is for several trials, but {given[0]} exports one: use json or toml")
    return several


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """Return a line of JSON for each record."""
    written = ({key: _time_as_text(value) for key, value in record.items()} for record in records)
    return "".join(json_text(record) + "\n" for record in written)


def csv_text(records: Iterable[dict[str, Any]]) -> str:
    """Return a table with a heading and a row for each record, without learning curves.

    Several metrics have a column each. A parameter with the name of another column is `params.NAME`. Lists, booleans
    and nulls among the parameters are JSON.
    """
    rows = list(records)
    metrics, params = further_columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(printable_lines, [*FIRST_COLUMNS, *metrics, *params.values()]))
    for row in rows:
        first = [_cell(_time_as_text(row[column])) for column in FIRST_COLUMNS]
        scores = [_cell(row["values"].get(metric)) for metric in metrics]
        values = [_param_cell(row["params"][name]) if name in row["params"] else "" for name in params]
        writer.writerow([*first, *scores, *values])
    return text.getvalue()


def further_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """Return the metrics of a study with several, and the column of each parameter; no two columns have one name."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.get("values", ())))
    names = dict.fromkeys(name for row in rows for name in row["params"])
    taken = {*FIRST_COLUMNS, *metrics}
    return metrics, {name: f"params.{name}" if name in taken else name for name in names}


def _cell(value: Any) -> Any:
    return printable_lines(value) if isinstance(value, str) else encode_non_finite(value)


def _param_cell(value: Any) -> Any:
    return json_text(value) if value is None or isinstance(value, list | bool) else _cell(value)


def _time_as_text(value: Any) -> Any:
    return utc_text(value, "milliseconds") if isinstance(value, datetime.datetime) else value


def _without_nulls(value: Any, place: Path = ()) -> Any:
    """Return a tree without keys that are None. Raises UsageError for None among the user's own values."""
    if value is None:
        raise UsageError(f"--format toml: {dotted_key(place)} is null, which TOML cannot store: use json")
    if isinstance(value, dict):
        users = "params" in place or "user_attrs" in place
        items = {key: each for key, each in value.items() if users or each is not None}
        return {key: _without_nulls(each, (*place, key)) for key, each in items.items()}
    if isinstance(value, list):
        return [_without_nulls(each, (*place, index)) for index, each in enumerate(value)]
    return value
