"""Profile of a training step per operation: chapter 6 of "Deep Learning from Scratch", a thread for each stack.

    python benchmarks/profile_step.py --members 16 --precision float32 --batch-norm --dropout 0.3 --stacks 2

Five epochs by torch.profiler, evaluation included, after five that warm up. Shares of the time disturb each other less
than times do where other programs are busy. What a step takes beyond its operations is Python and, with several
stacks, waiting for the interpreter's lock.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from chapter6 import find_images, study_of
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from hpo.training.cores.allocator import reused_memory
from hpo.training.device_data import to_device
from hpo.training.networks.builtin import build
from hpo.training.stack import DTYPES, Member, Stack

EPOCHS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--precision", choices=list(DTYPES), default="float32")
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--stacks", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset, images = find_images(args.members)
    study = study_of(dataset, args.batch_norm, args.members, args.precision)
    network = study.first_config.network.model_copy(update={"dropout": args.dropout})
    config = study.first_config.model_copy(update={"network": network})
    split = to_device(images, 0, torch.device("cpu")).in_type(DTYPES[args.precision])
    stacks = []
    for _ in range(args.stacks):
        members = [Member(number, config, number) for number in range(args.members)]
        modules = [build(network, split.shape, split.task.outputs, member.seed) for member in members]
        stacks.append(Stack(members, modules, split))

    def train(stack: Stack) -> None:
        for _ in range(EPOCHS):
            stack.epoch(stack.epochs_trained + 1)

    all_threads = _ExperimentalConfig(profile_all_threads=True)
    with reused_memory(), ThreadPoolExecutor(args.stacks) as pool:
        list(pool.map(train, stacks))
        with profile(activities=[ProfilerActivity.CPU], experimental_config=all_threads) as profiler:
            start = time.perf_counter()
            list(pool.map(train, stacks))
            seconds = time.perf_counter() - start
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    steps = EPOCHS * -(-len(images.train) // config.training.batch_size)
    print(f"{dataset}, {args.stacks} x {args.members} members, {args.precision}, torch {torch.__version__}")
    in_operations = total / steps / args.stacks / 1000
    print(f"a step of each stack: {1000 * seconds / steps:.1f} ms, in operations {in_operations:.1f} ms")
    for row in rows[:20]:
        share, calls = 100 * row.self_cpu_time_total / total, row.count / steps / args.stacks
        print(f"{row.key[:44]:44} {share:5.1f}% {calls:7.1f} a step {row.self_cpu_time_total / row.count:9.1f} us each")


if __name__ == "__main__":
    main()
