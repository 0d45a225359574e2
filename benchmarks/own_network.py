"""Benchmark of a user-defined network: a population against the same trials one at a time, in turn.

The network and its data are those of a study file, by default studies/residual-cnn.toml; each width is a separate
population, as in a search. One at a time is measured twice: by a plain loop of torch and torch.optim over tensors in
memory, and by hpo's training of networks that cannot be stacked. All use the same threads and batches, and no storage.

    HPO_DATA_DIR=... python benchmarks/own_network.py [FILE] [--members 8] [--rounds 5] [--set KEY=VALUE]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import torch
import torch.nn.functional as F

from hpo.search.plan import plan, to_planned_device
from hpo.studyfile import Choices, Parameter, Study, read_study
from hpo.training.device_data import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.population import train
from hpo.training.randomness import batch_order
from hpo.training.stack import DTYPES, Member

EVALUATION_BATCH = 500


def members_of(study: Study, count: int) -> dict[str, list[Member]]:
    """Return members for each value of the first argument with choices; they differ in every parameter with a range."""
    shapes = [parameter for parameter in study.parameters if isinstance(parameter.searched, Choices)]
    found = {}
    for number, choice in enumerate(shapes[0].searched.choices if shapes else [None]):  # type: ignore[union-attr]
        params = [{p.name: _at(p, member / count) for p in study.parameters} for member in range(count)]
        if shapes:
            params = [each | {shapes[0].name: choice} for each in params]
        name = f"{shapes[0].name} = {choice}" if shapes else "all"
        found[name] = [Member(member, study.config(each), seed=number) for member, each in enumerate(params)]
    return found


def _at(parameter: Parameter, part: float) -> Any:
    """Return a value of a parameter: its first choice, or a point of its range."""
    if isinstance(parameter.searched, Choices):
        return parameter.searched.choices[0]
    low, high = parameter.searched.low, parameter.searched.high
    return low * (high / low) ** (part / 2) if parameter.searched.log else low + (high - low) * part


def plain_torch(members: list[Member], split: DeviceSplit) -> Iterator[None]:
    """Train and evaluate each member for one epoch in turn, by a plain torch loop."""
    models = [build(m.config.network, split.shape, split.task.outputs, m.seed).to(split.device) for m in members]
    optimizers = [torch.optim.AdamW(model.parameters(), 1e-3) for model in models]
    epoch = 0
    while True:
        epoch += 1
        for member, model, optimizer in zip(members, models, optimizers, strict=True):
            model.train()
            order = batch_order(split.seed, epoch, len(split.train_targets)).to(split.device)
            for batch in torch.split(order, member.config.training.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(split.train[batch]), split.train_targets[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for images in torch.split(split.validation, EVALUATION_BATCH):
                    model(images)
        yield


def alone(members: list[Member], split: DeviceSplit, precision: str) -> Iterator[None]:
    """Do the same with the training that hpo uses for networks that cannot be stacked."""
    with ExitStack() as stack:
        each = [stack.enter_context(closing(train([m], split, precision, stacked=False))) for m in members]
        while True:
            for epochs in each:
                next(epochs)
            yield


def seconds(epochs: Iterator[object], device: torch.device) -> float:
    start = time.perf_counter()
    next(epochs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", default="studies/residual-cnn.toml")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    study = read_study(given.file, [*given.changes, f"training.epochs={given.rounds + 1}"])
    assert isinstance(study, Study), "the benchmark needs a network study"
    planned = plan(study, given.device)
    split = to_planned_device(study, planned)[0].in_type(DTYPES["float32"])
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {planned.device}; "
        f"{given.members} networks an epoch, {len(split.train):,} images; medians of {given.rounds} rounds in turn"
    )
    print(f"{'':24}{'s a network and epoch':>24}{'times one at a time in torch':>32}")
    for shape, members in members_of(study, given.members).items():
        ways: dict[str, Callable[[], Iterator[object]]] = {
            "torch, one at a time": lambda members=members: plain_torch(members, split),  # type: ignore[misc]
            "hpo, one at a time": lambda members=members: alone(members, split, "float32"),  # type: ignore[misc]
            "hpo, float32": lambda members=members: train(members, split, "float32"),  # type: ignore[misc]
            "hpo, bfloat16": lambda members=members: train(members, split, "bfloat16"),  # type: ignore[misc]
        }
        running = {way: begin() for way, begin in ways.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for epochs in running.values():
            next(epochs)  # warms up
        for _ in range(given.rounds):
            for way, epochs in running.items():
                times[way].append(seconds(epochs, split.device) / given.members)
        print(shape)
        for way, found in times.items():
            ratio = statistics.median(
                one / other for one, other in zip(times["torch, one at a time"], found, strict=True)
            )
            print(f"  {way:22}{statistics.median(found):24.4f}{ratio:32.2f}")


if __name__ == "__main__":
    main()
