"""Alternate the candidates of a benchmark in short chunks of equal work, and print mean, minimum and quartiles of each.

On a busy machine a stall of a second hits every long chunk and few short ones, so that long or unequal chunks mislead.
Imports neither torch nor hpo.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any, Self

Chunks = dict[str, list[float]]
"""Candidate -> seconds of each of its chunks."""


def alternate(candidates: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> Chunks:
    """Call each candidate once a round, in an order that is reversed from round to round; return the seconds of each.

    A first round warms up and is not counted. A candidate that then took n times as long as the first one takes part in
    each n-th round only, but in a quarter of the rounds at least: it would take most of the time.
    """
    seconds: Chunks = {name: [] for name in candidates}
    strides = dict.fromkeys(candidates, 1)
    if warm_up:
        took = {name: _timed(candidate) for name, candidate in candidates.items()}
        first, most = next(iter(took.values())), max(1, rounds // 4)
        strides = {name: min(most, max(1, int(each / first))) for name, each in took.items()}
    for number in range(rounds):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            if number % strides[name] == 0:
                seconds[name].append(_timed(candidates[name]))
    return seconds


def _timed(candidate: Callable[[], object]) -> float:
    start = time.perf_counter()
    candidate()
    return time.perf_counter() - start


def table(title: str, seconds: Mapping[str, Sequence[float]], units: float, base: str) -> Iterator[str]:
    """Yield a line for each candidate: milliseconds a unit of work, and how many times as fast as `base` it is.

    A chunk has `units` units. The ratios are those of the means and of the minima.
    """
    ratios = f"{'times as fast: mean':>21}{'least':>7}"
    yield f"{title:<38}{'chunks':>7}{'ms: mean':>10}{'least':>9}{'quartiles':>26}{ratios}"
    for name, chunks in seconds.items():
        ms = [1000 * each / units for each in chunks]
        quartiles = ", ".join(f"{each:.2f}" for each in (statistics.quantiles(ms, n=4) if len(ms) > 1 else ms * 3))
        means, minima = statistics.fmean(seconds[base]) / statistics.fmean(chunks), min(seconds[base]) / min(chunks)
        measured = f"{len(ms):>7}{statistics.fmean(ms):>10.2f}{min(ms):>9.2f}{quartiles:>26}"
        yield f"{name:<38}{measured}{means:>21.2f}{minima:>7.2f}"


class Workers:
    """Processes that are started once and then do work at the same time, such as the processes of a plain loop.

    Each one calls `make(*arguments)` once, and what it returns for each piece of work.
    """

    def __init__(self, count: int, make: Callable[..., Callable[[Any], object]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make, arguments), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, work: Sequence[object]) -> None:
        """Send a piece of work to each process, and a further one to each that is done; return when all are done."""
        waiting = list(reversed(work))
        busy: list[Any] = []
        for pipe in self._pipes:
            if waiting:
                pipe.send(waiting.pop())
                busy.append(pipe)
        while busy:
            ready: list[Any] = wait(busy)
            for pipe in ready:
                pipe.recv()  # raises EOFError where the process has died
                if waiting:
                    pipe.send(waiting.pop())
                else:
                    busy.remove(pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join()


def _work(pipe: Any, make: Callable[..., Callable[[Any], object]], arguments: Sequence[Any]) -> None:
    function = make(*arguments)
    try:
        while True:
            function(pipe.recv())
            pipe.send(None)
    except EOFError:
        return
