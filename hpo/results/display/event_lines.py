"""Lines of text about the events of a search, the same in a terminal and in a worker's log.

Each function returns one line, or a part of one. Which events are shown is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpo.search.events import PopulationEnded, StudyStarted, TrialsFailed, TrialsLeftOut, TrialsNotPromoted
from hpo.text import duration, number_ranges


def start_line(event: StudyStarted) -> str:
    """Return the first line of a launch: the number of trials, the population, the device and the network's size."""
    done = event.finished + event.pruned + event.failed
    resumed = f", {done} of them done before" if done else ""
    trials = f"{event.trials} trial{'' if event.trials == 1 else 's'}"
    if event.objective is not None:
        where = f", by {event.device}" if event.device else ""
        return f"{event.study}: {trials} of {event.objective}{where}{resumed}"
    return (
        f"{event.study}: {trials}{resumed}, {event.population} at once on {event.device} "
        f"in {event.precision}, {event.parameters:,} parameters a network"
    )


def failure_line(event: TrialsFailed) -> str:
    """Return the numbers of failed trials with the reason."""
    return f"{_numbered(event.members)} failed: {event.why}"


def not_trained_line(event: TrialsLeftOut) -> str:
    """Return the numbers of trials that exceed a limit, with the reason."""
    return f"{_numbered(event.members)} not trained: {event.why}"


def not_promoted_line(event: TrialsNotPromoted) -> str:
    """Return the number of frozen trials that ended as pruned, and their numbers."""
    trials = f"{len(event.members)} trial{'s' if len(event.members) > 1 else ''}"
    return f"{trials} not promoted from a rung, pruned: trials {number_ranges(event.members)}"


def _numbered(numbers: Sequence[int]) -> str:
    return f"{'trials' if len(numbers) > 1 else 'trial'} {', '.join(map(str, numbers))}"


def population_line(event: PopulationEnded) -> str:
    """Return the counts of a population that has ended or is frozen, its duration, and its stacks if shapes differ."""
    counts = {"completed": event.completed, "pruned": event.pruned, "failed": event.failed}
    if event.frozen:
        counts = {f"frozen at epoch {event.frozen_at}": event.frozen, **{w: n for w, n in counts.items() if n}}
    stacks = f"{event.stacks} stack{'s' if event.stacks > 1 else ''}"
    shapes = f" ({event.shapes} shapes in {stacks})" if event.shapes > 1 else ""
    return f"population: {', '.join(f'{n} {word}' for word, n in counts.items())} in {duration(event.seconds)}{shapes}"


def objective_trial_line(event: PopulationEnded) -> str:
    """Return the state, value and duration of a trial of an objective function."""
    counts = {"completed": event.completed, "pruned": event.pruned, "failed": event.failed}
    state = next((state for state, count in counts.items() if count), "to be tried again")
    value = "" if event.best is None else f" with {event.best:.4f}"
    return f"trial {event.members[0]}: {state}{value} in {duration(event.seconds)}"


def labelled(label: str, score: float | None) -> str:
    """Return `, best so far 0.9750`; "" where there is no score."""
    return "" if score is None else f", {label} {score:.4f}"


def pace(trials_a_second: float) -> str:
    """Return `2.5 trials/s`, or `6.0 trials/min` for a slow study."""
    if trials_a_second >= 0.1:
        return f"{trials_a_second:.1f} trials/s"
    return f"{60 * trials_a_second:.1f} trials/min"
