"""What `hpo export` writes: the best trial as an object, or several as records, in the form that was asked for."""

from __future__ import annotations

from hpo.errors import UsageError
from hpo.results.export import export_text
from hpo.results.trials import comma_separated, json_lines, trial_records
from hpo.storage import Storage


def exported(
    storage: Storage,
    name: str,
    *,
    confirmed: bool = False,
    every: bool = False,
    top: int | None = None,
    form: str = "json",
) -> str:
    """Return the text: of the best trial, of the confirmed winner, of `every` trial or of the `top` best.

    `form` is json, toml or csv. Raises UsageError for what does not go together.
    """
    asked = [option for option, given in (("--all", every), ("--top", top), ("--confirmed", confirmed)) if given]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]}: does not go with {asked[1]}")
    several = every or top is not None
    if form == "toml" and several:
        raise UsageError(f"--format toml: holds one trial, {asked[0]} asks for several; use json or csv")
    if form == "csv" and confirmed:
        raise UsageError("--format csv: has no place for the numbers of a confirmation; use json or toml")
    if not several and form != "csv":
        return export_text(storage, name, confirmed, form)
    records = trial_records(storage, name, None if every else top or 1)
    return "".join(comma_separated(records) if form == "csv" else json_lines(records))
