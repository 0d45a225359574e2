"""Turn storage measurements into findings: ok, warning or problem, with advice.

Pure functions, one a check. Commands in the advice can be pasted into a shell, except for masked passwords.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence

from hpo.results.doctor.finding import Finding, Verdict, ok, problem, warning
from hpo.storage import RunningTrial, storage_option
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
from hpo.text import first_few

SKEW_WARNING_S, SKEW_PROBLEM_S = 2.0, 30.0
FREE_WARNING, FREE_PROBLEM = 10**9, 10**8
"""Free bytes on the disk."""
BUSY = 0.8
"""The fraction of a server's connections in use from which there is a warning."""
NO_HEARTBEAT_S = 86_400.0
"""The time without a heartbeat after which there is a warning about a trial of another program."""
MOST_LISTED = 5
SYNCHRONIZE = "synchronize the clocks, as with `timedatectl set-ntp true`"


def connectivity(shown: str, facts: Connectivity) -> Finding:
    """Return the version of the database and its response times."""
    times = f"connected in {facts.connect_s * 1e3:.1f} ms, then {facts.round_trip_s * 1e3:.2f} ms a query"
    return ok("storage", f"{shown}: {facts.kind} {facts.version}, {times}")


def integrity(facts: Damage, location: Location) -> Finding:
    """Judge the results of SQLite's own checks of a file."""
    if facts.problems:
        advice = (
            "restore a backup, or stop the processes that use the file and recover its rows:"
            f" `sqlite3 {shlex.quote(str(location.file))} .recover | sqlite3 recovered.db`"
        )
        return problem("integrity", f"the file is damaged: {', '.join(facts.problems)}", advice)
    if facts.orphans:
        found = ", ".join(f"{count} rows of {table}" for (table, _), count in facts.orphans.items())
        command = _sql(location, delete_orphans_sql(facts.orphans))
        return problem("integrity", f"{found} refer to rows that do not exist", f"delete them: `{command}`")
    return ok("integrity", "no damage" if facts.whole else "no damage; indices are not compared, as the file is large")


def journal(facts: FileState) -> Finding:
    """Judge the journal mode: with WAL, readers do not wait for a writer."""
    if facts.journal_mode == "wal":
        return ok("journal", "wal")
    return warning(
        "journal",
        f"{facts.journal_mode}, not wal: processes wait for each other",
        "run `hpo studies`, which sets wal as every command does; if the warning stays, move the file to a local disk",
    )


def disk(facts: FileState) -> Finding:
    """Judge the free space on the disk of the file."""
    found = f"{facts.size / 1e6:,.1f} MB used, {facts.free / 1e9:,.1f} GB free"
    if facts.free >= FREE_WARNING:
        return ok("disk", found)
    verdict = Verdict.PROBLEM if facts.free < FREE_PROBLEM else Verdict.WARNING
    return Finding("disk", verdict, found, "free disk space, or copy the studies to another disk with `hpo copy`")


def connections(used: int, most: int) -> Finding:
    """Judge the number of a server's connections in use."""
    found = f"{used} of {most} in use"
    if used < BUSY * most:
        return ok("connections", found)
    return warning(
        "connections", found, "each process uses a few: stop some processes, or raise the server's max_connections"
    )


def schema(facts: Schema) -> Finding:
    """Judge whether all tables of Optuna exist; another schema version is an error before this check."""
    if not facts.revision:
        return ok("schema", "no tables yet; the first `hpo launch` creates them")
    if facts.missing:
        return problem(
            "schema",
            f"{facts.revision}, but without {first_few(facts.missing, MOST_LISTED)}",
            "restore a backup, or name another storage",
        )
    return ok("schema", f"{facts.revision}, the version that is needed")


def numbering(studies: int, wrong: Sequence[NumberingProblem], location: Location) -> Finding:
    """Judge the trial numbers: Optuna and hpo number a new trial by the count of trials."""
    if not wrong:
        return ok(
            "trial numbers", f"{studies} {'study' if studies == 1 else 'studies'}, no missing or duplicate numbers"
        )
    texts = []
    for each in wrong:
        wrong_numbers = [f"{_numbers(each.duplicates)} duplicate"] if each.duplicates else []
        wrong_numbers += [f"{_numbers(each.missing)} missing"] if each.missing else []
        found = " and ".join(wrong_numbers) or "trials without a number"
        texts.append(f"{each.study!r}: {found} among {each.trials:,} trials")
    command = _sql(location, renumber_sql(each.study_id for each in wrong))
    return problem(
        "trial numbers", first_few(texts, MOST_LISTED), f"stop all workers, then renumber the trials: `{command}`"
    )


def running(count: int, orphaned: Mapping[str, Sequence[RunningTrial]], url: str | None, damaged: bool) -> Finding:
    """Judge the running trials of hpo's workers; `orphaned` are those whose worker is dead, by study."""
    if not orphaned:
        return ok("running trials", f"{count}, each with a living worker" if count else "none")
    texts = []
    for study, trials in orphaned.items():
        reasons = sorted({trial.orphaned or "" for trial in trials})
        numbers = first_few([trial.number for trial in trials], MOST_LISTED)
        texts.append(f"trials {numbers} of {study!r} ({first_few(reasons, MOST_LISTED)})")
    first = "repair the file, then " if damaged else ""
    option = storage_option(url)
    return problem(
        "running trials",
        f"{sum(map(len, orphaned.values()))} of {count} orphaned, the worker is dead: {first_few(texts, MOST_LISTED)}",
        f"{first}requeue them with `hpo doctor --fix{option and ' '}{option}`, or launch the study again",
    )


def requeued(orphaned: int, waiting: int, failed: int) -> Finding:
    """Return the numbers of orphaned trials that were requeued, that failed, and whose worker is alive after all."""
    alive = orphaned - waiting - failed
    living = f", {alive} with a living worker after all" if alive else ""
    given_up = f", {failed} failed because too many of their workers died" if failed else ""
    return ok("running trials", f"{waiting} of {orphaned} orphaned trials requeued{given_up}{living}")


def others(
    trials: Sequence[tuple[str, int, datetime.datetime | None]], now: datetime.datetime, at: Location
) -> Finding:
    """Judge the running trials of other programs by their last heartbeat, in UTC."""
    old = [each for each in trials if each[2] is None or (now - each[2]).total_seconds() > NO_HEARTBEAT_S]
    if not old:
        return ok(
            "other trials", f"{len(trials)} running in other programs" if trials else "none running in other programs"
        )
    named = first_few([f"{number} of {study!r}" for study, number, _ in old], MOST_LISTED)
    study, number, _ = old[0]
    tell = f"optuna tell --storage {shlex.quote(optuna_url(at))} --study-name {shlex.quote(study)}"
    return warning(
        "other trials",
        f"{len(old)} running without a heartbeat for more than a day: {named}",
        f"if their program has ended, fail each of them: `{tell} --trial-number {number} --state fail`",
    )


def server_clock(skew_s: float, round_trip_s: float) -> Finding:
    """Judge the difference of the server's clock, minus half the round trip, which may explain it."""
    return _clock(
        max(0.0, abs(skew_s) - round_trip_s / 2),
        f"the server's clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's: workers"
        " store the start and end of trials, the server stores heartbeats, so displayed times are wrong",
        "the server's clock and this machine's agree",
    )


def file_clock(ahead_s: Sequence[float]) -> Finding:
    """Judge the clocks of machines that share a file by heartbeats ahead of this machine's clock."""
    ahead = max(ahead_s, default=0.0)
    return _clock(
        ahead,
        f"a heartbeat is {ahead:.1f} s ahead of this machine's clock: each machine that shares the file judges"
        " heartbeats by its own clock",
        "this machine's clock, as the storage is a file",
    )


def optuna_url(location: Location) -> str:
    """Return the URL for plain Optuna, which needs a driver name for PostgreSQL; passwords masked."""
    return location.shown.replace("postgresql://", "postgresql+psycopg://", 1)


def _sql(location: Location, statements: str) -> str:
    """Return the command that runs SQL on a storage."""
    if location.file is not None:
        return f"sqlite3 {shlex.quote(str(location.file))} {shlex.quote(statements)}"
    return f"psql {shlex.quote(location.shown.replace('+psycopg', '', 1))} -c {shlex.quote(statements)}"


def _clock(seconds: float, wrong: str, right: str) -> Finding:
    if seconds <= SKEW_WARNING_S:
        return ok("clock", right)
    return Finding("clock", Verdict.PROBLEM if seconds > SKEW_PROBLEM_S else Verdict.WARNING, wrong, SYNCHRONIZE)


def _numbers(numbers: Sequence[int]) -> str:
    """Return the first numbers; the facts do not contain all of a long list."""
    return ", ".join(map(str, numbers[:MOST_LISTED])) + (" and others" if len(numbers) > MOST_LISTED else "")
