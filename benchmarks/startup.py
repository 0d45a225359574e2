"""Benchmark of the start-up: CPU seconds of short processes, in alternation.

    python benchmarks/startup.py --rounds 10
    python benchmarks/startup.py --rounds 10 --against PATH
    python benchmarks/startup.py --rounds 10 --set data.dataset=mnist

A launch of two trials of one epoch on digits, which trains for hundredths of a second, against a plain Optuna loop that
does the same, and against the two imports that take longest: torch, and scikit-learn, which splits the data. Each
process is a new one; its CPU seconds are user and system time of all its threads, which other processes disturb less
than elapsed time. `--against` also launches with the hpo of another source tree, such as a git worktree of an earlier
commit; `--set` changes the study. The first round, which reads and compiles the files, is not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

STUDY = """
name = "tiny"
data.dataset = "digits"
network = { kind = "mlp", hidden = [32], dropout = { low = 0.0, high = 0.5 } }
optimizer = { kind = "sgd", lr = { low = 1e-3, high = 1.0, log = true } }
training = { epochs = 1, batch_size = 64 }
search.trials = 2
"""
LAUNCH = """
import sys
from hpo.cli import main
sys.argv = ["hpo", "launch", "tiny.toml", "--storage", "sqlite:///x.db", *OPTIONS]
sys.exit(main())
"""
IMPORTS = "import torch, sklearn.model_selection"
PLAIN = """
import optuna, torch, numpy
from torch import nn
folder = PATH
rows = torch.from_numpy(numpy.loadtxt(folder + "/datasets/data/digits.csv.gz", delimiter=",", dtype="float32"))[:1437]
images, labels = rows[:, :64] / 16, rows[:, 64].long()
def objective(trial):
    rate, lr = trial.suggest_float("dropout", 0, 0.5), trial.suggest_float("lr", 1e-3, 1, log=True)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(rate), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for batch in torch.split(torch.randperm(1150), 64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    model.eval()
    return float((model(images[1150:]).argmax(1) == labels[1150:]).float().mean())
optuna.create_study(storage="sqlite:///x.db", direction="maximize").optimize(objective, n_trials=2)
"""


def cpu_seconds(code: str, tree: Path) -> float:
    """Run code in a new process, in an empty folder; return its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tiny.toml").write_text(STUDY, encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else the tree is compiled at each start
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True, timeout=300
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def sklearn_folder() -> str:
    from hpo.data.known.scikit_learn import installed_folder

    return str(installed_folder())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--against", type=Path, metavar="PATH", help="a source tree with another hpo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change of the study")
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    plain = PLAIN.replace("PATH", repr(sklearn_folder()))
    launch = LAUNCH.replace("OPTIONS", repr([word for change in args.set for word in ("--set", change)]))
    candidates = {
        "import torch": ("import torch", here),
        "import torch, scikit-learn": (IMPORTS, here),
        "plain Optuna loop": (plain, here),
    }
    if args.against:
        candidates["hpo launch, other tree"] = (launch, args.against.resolve())
    candidates["hpo launch"] = (launch, here)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(args.rounds + 1):
        for name, (code, tree) in candidates.items():
            measured = cpu_seconds(code, tree)
            if number:  # the first round also reads files from the disk
                seconds[name].append(measured)
    print(f"{platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}, {args.rounds} rounds")
    print(f"\n{'CPU seconds of a process':<27}{'mean':>7}{'least':>7}   quartiles           times hpo launch")
    ours = seconds["hpo launch"]
    for name, values in seconds.items():
        first, middle, third = statistics.quantiles(values, n=4)
        quartiles = f"{first:.2f}, {middle:.2f}, {third:.2f}"
        ratio = statistics.fmean(values) / statistics.fmean(ours)
        print(f"{name:<27}{statistics.fmean(values):>7.2f}{min(values):>7.2f}   {quartiles:<20}{ratio:.2f}")


if __name__ == "__main__":
    main()
