"""Benchmark of the compiled passes: a stack with them, and by torch's operations alone.

    python benchmarks/passes.py --members 16 --precision float32 --rounds 20

One stack in one thread, an epoch a chunk, evaluation included, in alternation: the MLP of chapter 6 (784-[100]*6-10,
batch 100) on 400 images, without and with batch norm and dropout, by three optimizers, and a network for the digits
(64-[32]-10, batch 64). "products" are the matrix products of the epoch alone, "products, passes" these and the passes
without anything between them: what an epoch takes beyond is Python, and the operations that have no pass.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from alternation import alternate, table
from chapter6 import find_images, study_of
from matrix_products import products_of_epoch

from hpo.data import load_split
from hpo.studyfile import Config
from hpo.training.cores.allocator import reused_memory
from hpo.training.device_data import DeviceSplit, to_device
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import in_type
from hpo.training.optimizers import compiled
from hpo.training.speed.timing import with_tiny_lr
from hpo.training.stack import DTYPES, Member, Stack
from hpo.training.stacking import linear_chain
from hpo.training.tasks import losses

BY_TORCH = "by torch"
CALLERS = (linear_chain, compiled, losses)


def cases(dataset: str, images: DeviceSplit, digits: DeviceSplit) -> Iterator[tuple[str, Config, DeviceSplit]]:
    """Yield the title, the configuration and the split of each case."""
    for optimizer in ("sgd", "momentum", "adam"):
        for batch_norm, dropout in ((False, 0.0), (True, 0.0), (True, 0.3)):
            used = [optimizer, *["batch norm"] * batch_norm, *["dropout"] * (dropout > 0)]
            yield ", ".join(used), _config(dataset, optimizer, batch_norm, dropout), images
    small = _config("digits", "adam", True, 0.3)
    network = small.network.model_copy(update={"hidden": [32]})
    training = small.training.model_copy(update={"batch_size": 64})
    yield (
        "digits, adam, batch norm, dropout",
        small.model_copy(update={"network": network, "training": training}),
        digits,
    )


def _config(dataset: str, optimizer: str, batch_norm: bool, dropout: float) -> Config:
    config = study_of(dataset, batch_norm, 1, "float32").first_config
    network = config.network.model_copy(update={"dropout": dropout})
    kind = config.optimizer.model_copy(update={"kind": optimizer})
    return config.model_copy(update={"network": network, "optimizer": kind})


def make_stack(members: list[Member], split: DeviceSplit, precision: str) -> Stack:
    network = members[0].config.network
    modules = [build(network, split.shape, split.task.outputs, member.seed) for member in members]
    for module in modules:
        in_type(module, DTYPES[precision])
    return Stack(members, modules, split.in_type(DTYPES[precision]))


def train_epoch(stack: Stack, with_passes: bool) -> None:
    with ExitStack() as patched:
        for module in () if with_passes else CALLERS:
            patched.enter_context(patch.object(module, "passes_for", lambda x: None))
        stack.epoch(stack.epochs_trained + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--precision", choices=list(DTYPES), default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset, found = find_images(1)
    small = load_split(study_of("digits", False, 1, "float32"))
    images, digits = (to_device(each, 0, torch.device("cpu")) for each in (found, small))
    print(f"{platform.machine()}, torch {torch.__version__}, {args.precision}, {args.members} members in one thread")
    for title, config, split in cases(dataset, images, digits):
        members = [with_tiny_lr(Member(number, config, number)) for number in range(args.members)]
        bound = partial(products_of_epoch, members, split, args.precision)
        candidates: dict[str, Callable[[], Any]] = {
            BY_TORCH: partial(train_epoch, make_stack(members, split, args.precision), False),
            "with passes": partial(train_epoch, make_stack(members, split, args.precision), True),
            "products, passes": bound(passes=True),
            "products": bound(),
        }
        with reused_memory():
            print(*table(title, alternate(candidates, args.rounds), args.members, BY_TORCH), sep="\n", flush=True)


if __name__ == "__main__":
    main()
