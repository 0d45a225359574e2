"""Benchmark of the size of stacks: a population of 32 in stacks of 16, 8, 4, 2 and 1, beside programs that copy memory.

    python benchmarks/stack_sizes.py [--rounds 20] [--neighbours 2] [--batch-norm] [--cnn]

A chunk is an epoch of the population; the sizes take turns. First the machine has nothing else to do, then as many
processes as `--neighbours` copy arrays of 64 MiB in a loop. The networks are those of benchmarks/chapter6.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time

import numpy as np
import torch
from alternation import alternate, table
from chapter6 import POPULATION, cnn_study, find_images, random_images, study_of

from hpo.training.device_data import to_device
from hpo.training.grouping import stack_key
from hpo.training.population import train
from hpo.training.speed.timing import with_tiny_lr
from hpo.training.stack import Member


def copy_forever() -> None:
    source = np.ones(2**23)  # 64 MiB
    target = np.empty_like(source)
    while True:
        np.copyto(target, source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--neighbours", type=int, default=2)
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--cnn", action="store_true")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.cnn:
        study, split = cnn_study(given.batch_norm), random_images()
    else:
        dataset, images = find_images(1)
        study, split = study_of(dataset, given.batch_norm, 1, "float32"), to_device(images, 0, torch.device("cpu"))
    torch.set_num_threads(given.cores)
    members = [with_tiny_lr(Member(number, study.first_config, number)) for number in range(POPULATION)]
    largest = -(-POPULATION // given.cores)
    sizes = [size for size in (16, 8, 4, 2, 1) if size <= largest]
    key = stack_key(members[0].config)
    runs = {f"stacks of {size}": train(members, split, "float32", stack_sizes={key: size}) for size in sizes}
    candidates = {name: lambda epochs=epochs: next(epochs) for name, epochs in runs.items()}
    base = next(iter(runs))
    print(f"{study.name}, {given.cores} cores, torch {torch.__version__}; ms a member-epoch")
    print(*table("alone", alternate(candidates, given.rounds), POPULATION, base), sep="\n", flush=True)
    context = multiprocessing.get_context("spawn")
    neighbours = [context.Process(target=copy_forever, daemon=True) for _ in range(given.neighbours)]
    for neighbour in neighbours:
        neighbour.start()
    time.sleep(3)  # until they copy
    title = f"beside {given.neighbours} that copy"
    print(*table(title, alternate(candidates, given.rounds), POPULATION, base), sep="\n")
    for neighbour in neighbours:
        neighbour.kill()


if __name__ == "__main__":
    main()
