"""The configurations of a study's trials: which are used, which are fixed, and the next one of a finite space.

A trial's configuration is fixed where it is a point of the study file, or repeats that of an earlier trial. No other
trial has a used configuration, unless the study allows repetition. Knows nothing of samplers and results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hpo.search.points import points
from hpo.search.space import Values, combination, identity, size
from hpo.studyfile import Study


class Configurations:
    """The configurations of the trials that were added, by number; those of other studies, `before`, are used too."""

    def __init__(self, study: Study, before: Iterable[Values] = ()) -> None:
        self._study, self._points, self._repeats = study, points(study), study.search.repeats
        self._size = size(study)
        self._used_before = set(map(identity, before))
        self._used = set(self._used_before)
        self._first: dict[int, Values] = {}  # with repeats: the parameters of each configuration's first trial
        self._next = 0  # every combination before this one is used

    def add(self, number: int, values: Values) -> None:
        """Add a trial's configuration, which is then used."""
        self._used.add(identity(values))
        if self._repeats > 1 and number % self._repeats == 0:
            self._first[number] = values

    def forget(self, added: Sequence[tuple[int, Values]]) -> None:
        """Remove the configurations of trials, (number, values) each, that were new with them."""
        new = {identity(values) for number, values in added if self._repeated(number) is None}
        self._used -= new - self._used_before
        for number, _ in added:
            self._first.pop(number, None)
        self._next = 0

    def fixed(self, number: int) -> Values | None:
        """Return the configuration of a repeat or a point, which is trained even where it is used; None for others."""
        repeated, index = self._repeated(number), number // self._repeats
        return self._points[index] if repeated is None and index < len(self._points) else repeated

    def _repeated(self, number: int) -> Values | None:
        """Return the parameters that a trial repeats; None for the first trial of its configuration."""
        repeat = number % self._repeats
        return self._first.get(number - repeat) if repeat else None

    def is_sampled(self, number: int) -> bool:
        """Return whether a trial's parameters are sampled: it is neither a point nor a repeat."""
        return number % self._repeats == 0 and number // self._repeats >= len(self._points)

    def allows(self, values: Values) -> bool:
        """Return whether a new trial may have this configuration: it is unused, or the study allows repetition."""
        return self._study.search.repeat or identity(values) not in self._used

    @property
    def finite(self) -> bool:
        """Whether the search space is finite."""
        return self._size != math.inf

    @property
    def exhausted(self) -> bool:
        """Whether every configuration of a finite space is used."""
        return not self._study.search.repeat and len(self._used) >= self._size

    def next_combination(self, number: int) -> Values:
        """Return the first unused combination of a finite space, or with repetition the next one in order."""
        if self._study.search.repeat:
            return combination(self._study, number // self._repeats % int(self._size))
        while not self.allows(values := combination(self._study, self._next)):
            self._next += 1
            assert self._next < self._size, "a space that is not exhausted has an unused combination"
        return values
