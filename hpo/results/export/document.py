"""What `hpo export` writes: the best trial as an object, or several as records, in the form that was asked for."""

from __future__ import annotations

from hpo.errors import UsageError
from hpo.results.export.best import export_text
from hpo.results.export.trials import comma_separated, json_lines, trial_records
from hpo.storage import Storage, summary
from hpo.storage.studies import best_limit


def exported(
    storage: Storage,
    name: str,
    *,
    confirmed: bool = False,
    every: bool = False,
    top: int | None = None,
    trial: int | None = None,
    form: str = "json",
) -> str:
    """Return the text: of the best, of the confirmed winner, of `every` trial, of the `top` best, or of one `trial`.

    `form` is json, toml or csv. Raises UsageError for what does not go together.
    """
    options = {"--all": every, "--top": top is not None, "--trial": trial is not None, "--confirmed": confirmed}
    asked = [option for option, given in options.items() if given]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]}: does not go with {asked[1]}")
    several = every or top is not None
    if form == "toml" and several:
        raise UsageError(f"--format toml: holds one trial, {asked[0]} asks for several; use json or csv")
    if form == "csv" and (confirmed or trial is not None):
        raise UsageError(f"--format csv: is for several trials, {asked[0]} asks for one; use json or toml")
    if not several and form != "csv":
        return export_text(storage, name, confirmed, form, trial)
    records = trial_records(storage, name, None if every else top or best_limit(summary(storage, name).directions))
    return "".join(comma_separated(records) if form == "csv" else json_lines(records))
