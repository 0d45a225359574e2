"""What `hpo doctor` finds in a storage, check by check.

Promises: a storage that cannot be opened is one problem; a check that fails does not keep the others from being made;
without `fix` nothing is written, and with it lost trials are taken back, unless the file is damaged, and no more. No
storage is made.
The facts come from `hpo.storage.health`; what they mean is judged in `hpo.results.doctor.verdicts`.
"""

from __future__ import annotations

import datetime
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing

from hpo.errors import HpoError, StorageError
from hpo.results.doctor import verdicts
from hpo.results.doctor.finding import Finding, Verdict, failed, ok
from hpo.results.lookup import open_existing
from hpo.storage import RunningTrial, requeue_orphaned
from hpo.storage.health import Connectivity, StorageHealth
from hpo.storage.location import STORAGE_VARIABLE, locate


def storage_findings(url: str | None, fix: bool) -> Iterator[Finding]:
    """Check the storage at `url`; with `fix`, send lost trials back to the queue."""
    try:
        location = locate(url)
        if location.file is not None and not location.file.exists():
            if url is None and not os.environ.get(STORAGE_VARIABLE):
                yield ok("storage", f"{location.shown}: none yet; the first `hpo launch` makes it")
                return
            raise StorageError(f"{location.shown}: no such file; name another storage, or start a study there")
        health = StorageHealth(location)
    except (HpoError, OSError) as error:
        yield failed("storage", error)
        return
    with closing(health):
        try:
            answer = health.connectivity()
        except (HpoError, OSError) as error:
            yield failed("storage", error)
        else:
            yield verdicts.answer(health.shown, answer)
            yield from _inside(health, answer, url, fix)


def _inside(health: StorageHealth, answer: Connectivity, url: str | None, fix: bool) -> Iterator[Finding]:
    yield from (integrity := _made("integrity", lambda: _integrity(health)))
    yield from _made("journal", lambda: _journal(health))
    yield from _made("disk", lambda: _disk(health))
    yield from _made("connections", lambda: _connections(health))
    tables = False
    try:
        schema = health.schema()
    except HpoError as error:
        yield failed("schema", error)
    else:
        yield verdicts.schema(schema)
        tables = bool(schema.revision) and not schema.missing
    if tables:
        damaged = any(finding.verdict != Verdict.OK for finding in integrity)
        yield from _made("trial numbers", lambda: verdicts.numbering(*health.numbering_problems(), health.location))
        yield from _made("running trials", lambda: _running(health, url, fix, damaged))
        yield from _made("other trials", lambda: _others(health))
    yield from _made("clock", lambda: _clock(health, answer, tables))


def _made(check: str, make: Callable[[], Finding | None]) -> list[Finding]:
    """Return what a check finds: nothing where it does not apply, a problem where it fails."""
    try:
        finding = make()
    except (HpoError, OSError) as error:
        return [failed(check, error)]
    return [] if finding is None else [finding]


def _integrity(health: StorageHealth) -> Finding | None:
    damage = health.damage()
    return None if damage is None else verdicts.integrity(damage, health.location)


def _journal(health: StorageHealth) -> Finding | None:
    state = health.file_state()
    return None if state is None else verdicts.journal(state)


def _disk(health: StorageHealth) -> Finding | None:
    state = health.file_state()
    return None if state is None else verdicts.disk(state)


def _connections(health: StorageHealth) -> Finding | None:
    counts = health.connections()
    return None if counts is None else verdicts.connections(*counts)


def _running(health: StorageHealth, url: str | None, fix: bool, damaged: bool) -> Finding:
    found = [each for each in health.running() if each[1].worker is not None]
    lost: defaultdict[str, list[RunningTrial]] = defaultdict(list)
    for study, trial in found:
        if trial.orphaned:
            lost[study].append(trial)
    if not lost or not fix or damaged:
        return verdicts.running(len(found), lost, url, damaged)
    with closing(open_existing(url)) as storage:
        # Study by study: what comes back are numbers, which trials of other studies have, too.
        taken = [requeue_orphaned(storage, trials) for trials in lost.values()]
    waiting, given_up = (sum(map(len, numbers)) for numbers in zip(*taken, strict=True))
    return verdicts.retaken(sum(map(len, lost.values())), waiting, given_up)


def _others(health: StorageHealth) -> Finding:
    """Those that hpo's workers do not hold: without a heartbeat, or with one of plain Optuna's."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    others = [(each.study, each.number, each.started) for each in health.running_without_heartbeat()]
    for study, trial in health.running():
        if trial.worker is None:
            others.append((study, trial.number, now - datetime.timedelta(seconds=trial.silent_s)))
    return verdicts.others(others, now, health.location)


def _clock(health: StorageHealth, answer: Connectivity, tables: bool) -> Finding:
    if answer.skew_s is not None:
        return verdicts.server_clock(answer.skew_s, answer.round_trip_s)
    return verdicts.file_clock([-trial.silent_s for _, trial in health.running()] if tables else [])
