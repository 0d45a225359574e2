"""What the facts about a storage mean: fine, a warning or a problem, in a sentence, and what to do.

Each function judges the facts of one check and asks nothing itself. A command that is shown can be typed as it is, but
for passwords, which are masked.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence

from hpo.results.doctor.finding import Finding, Verdict, ok, option, problem, warning
from hpo.storage import RunningTrial
from hpo.storage.health import (
    Connectivity,
    Damage,
    FileState,
    NumberingProblem,
    Schema,
    delete_orphans_sql,
    renumber_sql,
)
from hpo.storage.location import Location

SKEW_WARNING_S, SKEW_PROBLEM_S = 2.0, 30.0
FREE_WARNING, FREE_PROBLEM = 10**9, 10**8
"""Bytes left on the disk."""
BUSY = 0.8
"""The part of a server's connections in use that is a warning."""
UNHEARD_S = 86_400.0
"""How long a trial of another program may run without a sign of life before it is asked about."""
SHOWN = 5
SYNCHRONIZE = "synchronize the clocks, as with `timedatectl set-ntp true`"


def answer(shown: str, facts: Connectivity) -> Finding:
    """Say what answered, and how fast."""
    times = f"connected in {facts.connect_s * 1e3:.1f} ms, then {facts.round_trip_s * 1e3:.2f} ms a question"
    return ok("storage", f"{shown}: {facts.kind} {facts.version}, {times}")


def integrity(facts: Damage, location: Location) -> Finding:
    """Judge what SQLite's own checks say of a file."""
    if facts.problems:
        advice = (
            "restore a backup, or stop what uses the file and save what can be read:"
            f" `sqlite3 {shlex.quote(str(location.file))} .recover | sqlite3 recovered.db`"
        )
        return problem("integrity", f"the file is damaged: {', '.join(facts.problems)}", advice)
    if facts.orphans:
        found = ", ".join(f"{count} rows of {table}" for (table, _), count in facts.orphans.items())
        command = _sql(location, delete_orphans_sql(facts.orphans))
        return problem("integrity", f"{found} belong to nothing", f"delete them: `{command}`")
    return ok("integrity", "no damage" if facts.whole else "no damage; indices of so large a file are not compared")


def journal(facts: FileState) -> Finding:
    """Judge whether readers and a writer can work side by side."""
    if facts.journal_mode == "wal":
        return ok("journal", "wal")
    return warning(
        "journal",
        f"{facts.journal_mode}, not wal: processes wait for each other",
        "`hpo studies` sets it as any command does; if it stays so, move the file to a local disk",
    )


def disk(facts: FileState) -> Finding:
    """Judge the room that is left beside the file."""
    found = f"{facts.size / 1e6:,.1f} MB used, {facts.free / 1e9:,.1f} GB free"
    if facts.free >= FREE_WARNING:
        return ok("disk", found)
    verdict = Verdict.PROBLEM if facts.free < FREE_PROBLEM else Verdict.WARNING
    return Finding("disk", verdict, found, "make room, or copy the studies to another disk with `hpo copy`")


def connections(used: int, most: int) -> Finding:
    """Judge how many of a server's connections are left."""
    found = f"{used} of {most} in use"
    if used < BUSY * most:
        return ok("connections", found)
    return warning("connections", found, "each process takes a few: stop some, or raise the server's max_connections")


def schema(facts: Schema) -> Finding:
    """Judge whether all of Optuna's tables are there; those of another Optuna do not get here."""
    if not facts.revision:
        return ok("schema", "no tables yet; the first `hpo launch` makes them")
    if facts.missing:
        return problem(
            "schema",
            f"{facts.revision}, but without {_few(facts.missing)}",
            "restore a backup, or name another storage",
        )
    return ok("schema", f"{facts.revision}, the one that is needed")


def numbering(studies: int, wrong: Sequence[NumberingProblem], location: Location) -> Finding:
    """Judge the numbers of trials: Optuna and hpo number new trials by how many there are."""
    if not wrong:
        return ok("trial numbers", f"{studies} {'study' if studies == 1 else 'studies'}, without gaps and doubles")
    texts = []
    for each in wrong:
        said = [f"{_some(each.duplicates)} double"] if each.duplicates else []
        said += [f"{_some(each.missing)} missing"] if each.missing else []
        texts.append(f"{each.study!r}: {' and '.join(said) or 'some have none'} among {each.trials:,} trials")
    command = _sql(location, renumber_sql(each.study_id for each in wrong))
    return problem("trial numbers", _few(texts), f"while nobody searches, number them anew: `{command}`")


def running(count: int, lost: Mapping[str, Sequence[RunningTrial]], url: str | None, damaged: bool) -> Finding:
    """Judge the trials that hpo's workers hold; `lost` are those that nobody trains any more, by study."""
    if not lost:
        return ok("running trials", f"{count}, each by a process that shows signs of life" if count else "none")
    texts = []
    for study, trials in lost.items():
        reasons = sorted({trial.orphaned or "" for trial in trials})
        texts.append(f"trials {_few([str(trial.number) for trial in trials])} of {study!r} ({_few(reasons)})")
    first = "put the file right, then " if damaged else ""
    return problem(
        "running trials",
        f"{sum(map(len, lost.values()))} of {count} are trained by nobody: {_few(texts)}",
        f"{first}send them back to the queue with `hpo doctor --fix{option(url)}`, or launch the study again",
    )


def retaken(lost: int, waiting: int, failed: int) -> Finding:
    """Say what became of trials that nobody trained."""
    back = lost - waiting - failed
    shown_up = f", {back} shown up again" if back else ""
    given_up = f", {failed} failed, whose processes died too often" if failed else ""
    return ok("running trials", f"{waiting} of {lost} lost trials sent back to the queue{given_up}{shown_up}")


def others(
    trials: Sequence[tuple[str, int, datetime.datetime | None]], now: datetime.datetime, at: Location
) -> Finding:
    """Judge the running trials of other programs, by their last sign of life, in UTC."""
    old = [each for each in trials if each[2] is None or (now - each[2]).total_seconds() > UNHEARD_S]
    if not old:
        return ok("other trials", f"{len(trials)} run in other programs" if trials else "none run in other programs")
    named = _few([f"{number} of {study!r}" for study, number, _ in old])
    study, number, _ = old[0]
    tell = f"optuna tell --storage {shlex.quote(optuna_url(at))} --study-name {shlex.quote(study)}"
    return warning(
        "other trials",
        f"{len(old)} run without a sign of life for more than a day: {named}",
        f"if nobody trains them any more, end each: `{tell} --trial-number {number} --state fail`",
    )


def server_clock(skew_s: float, round_trip_s: float) -> Finding:
    """Judge the server's clock against this machine's; half the round trip may be the way and not the clock."""
    return _clock(
        max(0.0, abs(skew_s) - round_trip_s / 2),
        f"the server's is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's: starts and ends"
        " of trials are noted by the machine that trains, signs of life by the server; times that are shown are off",
        "the server's and this machine's agree",
    )


def file_clock(ahead_s: Sequence[float]) -> Finding:
    """Judge the clocks of machines that share a file, by how far signs of life are ahead of this machine's."""
    ahead = max(ahead_s, default=0.0)
    return _clock(
        ahead,
        f"a sign of life is {ahead:.1f} s ahead of this machine's: machines that share the file tell each by its own"
        " clock who is silent",
        "this machine's own, as the storage is a file",
    )


def optuna_url(location: Location) -> str:
    """Return the URL as plain Optuna takes it, passwords masked: it knows no driver of its own for PostgreSQL."""
    return location.shown.replace("postgresql://", "postgresql+psycopg://", 1)


def _sql(location: Location, statements: str) -> str:
    """The command that runs SQL on a storage."""
    if location.file is not None:
        return f"sqlite3 {shlex.quote(str(location.file))} {shlex.quote(statements)}"
    return f"psql {shlex.quote(location.shown.replace('+psycopg', '', 1))} -c {shlex.quote(statements)}"


def _clock(seconds: float, wrong: str, right: str) -> Finding:
    if seconds <= SKEW_WARNING_S:
        return ok("clock", right)
    return Finding("clock", Verdict.PROBLEM if seconds > SKEW_PROBLEM_S else Verdict.WARNING, wrong, SYNCHRONIZE)


def _few(items: Sequence[object]) -> str:
    """The first few, and how many more there are."""
    listed = ", ".join(map(str, items[:SHOWN]))
    return listed if len(items) <= SHOWN else f"{listed} and {len(items) - SHOWN} more"


def _some(numbers: Sequence[int]) -> str:
    """The same of a list that may have been cut short."""
    return ", ".join(map(str, numbers[:SHOWN])) + (" and others" if len(numbers) > SHOWN else "")
