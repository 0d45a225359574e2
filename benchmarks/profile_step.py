"""Profile of a training step per operation: chapter 6 of "Deep Learning from Scratch", one stack, one thread.

    python benchmarks/profile_step.py --members 16 --precision float32 --batch-norm --dropout 0.3

Five epochs by torch.profiler, evaluation included, after one that warms up. Shares of the time disturb each other less
than times do where other programs are busy.
"""

from __future__ import annotations

import argparse

import torch
from chapter6 import find_images, study_of
from torch.profiler import ProfilerActivity, profile

from hpo.training.allocator import reused_memory
from hpo.training.device_data import to_device
from hpo.training.networks.builtin import build
from hpo.training.stack import DTYPES, Member, Stack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--precision", choices=list(DTYPES), default="float32")
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--dropout", type=float, default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset, images = find_images(args.members)
    study = study_of(dataset, args.batch_norm, args.members, args.precision)
    network = study.first_config.network.model_copy(update={"dropout": args.dropout})
    config = study.first_config.model_copy(update={"network": network})
    members = [Member(number, config, number) for number in range(args.members)]
    split = to_device(images, 0, torch.device("cpu")).in_type(DTYPES[args.precision])
    modules = [build(network, split.shape, split.task.outputs, member.seed) for member in members]
    stack = Stack(members, modules, split)
    with reused_memory():
        stack.epoch(1)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for epoch in range(2, 7):
                stack.epoch(epoch)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    steps = 5 * -(-len(images.train) // config.training.batch_size)
    print(f"{dataset}, {args.members} members, torch {torch.__version__}: {total / steps / 1000:.1f} ms a step")
    for row in rows[:20]:
        share, calls = 100 * row.self_cpu_time_total / total, row.count / steps
        print(f"{row.key[:44]:44} {share:5.1f}% {calls:7.1f} a step {row.self_cpu_time_total / row.count:9.1f} us each")


if __name__ == "__main__":
    main()
