"""Checks of a storage for `hpo doctor`: one finding a check.

A storage that cannot be opened is one problem; a check that fails does not prevent the next ones. Without `fix` nothing
is written; with it, orphaned trials are requeued, unless the file is damaged. No storage is created.
`hpo.storage.health` reads the facts, `hpo.results.doctor.verdicts` turns them into findings.
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
from hpo.results.study_facts import open_existing
from hpo.storage import RunningTrial, requeue_orphaned
from hpo.storage.health import Connectivity, FileState, StorageHealth
from hpo.storage.location import STORAGE_VARIABLE, locate


def storage_findings(url: str | None, fix: bool) -> Iterator[Finding]:
    """Check the storage at `url`; with `fix`, requeue orphaned trials."""
    try:
        location = locate(url)
        if location.file is not None and not location.file.exists():
            if url is None and not os.environ.get(STORAGE_VARIABLE):
                yield ok("storage", f"{location.shown}: does not exist yet; the first `hpo launch` creates it")
                return
            raise StorageError(f"{location.shown}: no such file; name another storage, or start a study there")
        health = StorageHealth(location)
    except (HpoError, OSError) as error:
        yield failed("storage", error)
        return
    with closing(health):
        try:
            connectivity = health.connectivity()
        except (HpoError, OSError) as error:
            yield failed("storage", error)
        else:
            yield verdicts.connectivity(health.shown, connectivity)
            yield from _checks(health, connectivity, url, fix)


def _checks(health: StorageHealth, connectivity: Connectivity, url: str | None, fix: bool) -> Iterator[Finding]:
    integrity = _run("integrity", lambda: _integrity(health))
    yield from integrity
    yield from _run("journal", lambda: _of_file(health, verdicts.journal))
    yield from _run("disk", lambda: _of_file(health, verdicts.disk))
    yield from _run("connections", lambda: _connections(health))
    has_tables = False
    try:
        schema = health.schema()
    except HpoError as error:
        yield failed("schema", error)
    else:
        yield verdicts.schema(schema)
        has_tables = bool(schema.revision) and not schema.missing
    if has_tables:
        damaged = any(finding.verdict != Verdict.OK for finding in integrity)
        yield from _run("trial numbers", lambda: verdicts.numbering(*health.numbering_problems(), health.location))
        yield from _run("running trials", lambda: _running(health, url, fix, damaged))
        yield from _run("other trials", lambda: _others(health))
    yield from _run("clock", lambda: _clock(health, connectivity, has_tables))


def _run(check: str, make: Callable[[], Finding | None]) -> list[Finding]:
    """Return the finding of a check: none where the check does not apply, a problem where it fails."""
    try:
        finding = make()
    except (HpoError, OSError) as error:
        return [failed(check, error)]
    return [] if finding is None else [finding]


def _integrity(health: StorageHealth) -> Finding | None:
    damage = health.damage()
    return None if damage is None else verdicts.integrity(damage, health.location)


def _of_file(health: StorageHealth, judge: Callable[[FileState], Finding]) -> Finding | None:
    state = health.file_state()
    return None if state is None else judge(state)


def _connections(health: StorageHealth) -> Finding | None:
    counts = health.connections()
    return None if counts is None else verdicts.connections(*counts)


def _running(health: StorageHealth, url: str | None, fix: bool, damaged: bool) -> Finding:
    found = [each for each in health.running() if each[1].worker is not None]
    orphaned: defaultdict[str, list[RunningTrial]] = defaultdict(list)
    for study, trial in found:
        if trial.orphaned:
            orphaned[study].append(trial)
    if not orphaned or not fix or damaged:
        return verdicts.running(len(found), orphaned, url, damaged)
    with closing(open_existing(url)) as storage:
        # study by study: the results are trial numbers, which are unique within a study only
        requeued = [requeue_orphaned(storage, trials) for trials in orphaned.values()]
    waiting, failed_trials = (sum(map(len, numbers)) for numbers in zip(*requeued, strict=True))
    return verdicts.requeued(sum(map(len, orphaned.values())), waiting, failed_trials)


def _others(health: StorageHealth) -> Finding:
    """Check the running trials of other programs: without a heartbeat, or with one of plain Optuna."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    others = [(each.study, each.number, each.started) for each in health.running_without_heartbeat()]
    for study, trial in health.running():
        if trial.worker is None:
            others.append((study, trial.number, now - datetime.timedelta(seconds=trial.silent_s)))
    return verdicts.others(others, now, health.location)


def _clock(health: StorageHealth, connectivity: Connectivity, has_tables: bool) -> Finding:
    if connectivity.skew_s is not None:
        return verdicts.server_clock(connectivity.skew_s, connectivity.round_trip_s)
    return verdicts.file_clock([-trial.silent_s for _, trial in health.running()] if has_tables else [])
