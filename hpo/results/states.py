"""The states of trials in words: one by one, and how many of a study are in each. Knows nothing of storages."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.trial import TrialState

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def by_word(states: Mapping[TrialState, int]) -> dict[str, int]:
    """Return how many trials are in each state, every state named."""
    return {word: states.get(state, 0) for state, word in STATES.items()}


def states_line(states: Mapping[TrialState, int]) -> str:
    """Return `62 complete, 2 pruned`: the states that occur."""
    return ", ".join(f"{count} {word}" for word, count in by_word(states).items() if count) or "none"
