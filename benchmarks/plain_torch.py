"""Plain torch for benchmarks: two small networks, one epoch of a training loop, and a plain Optuna search as a process.

The networks are the MLP of "Deep Learning from Scratch", chapter 6, and the CNN of studies/cifar10-cnn-dropout.toml.
Imports torch and Optuna alone, so that a plain process starts up as fast as one without hpo.

    python benchmarks/plain_torch.py URL TENSORS BATCH_NORM EPOCHS TRIALS SEED THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, HIDDEN = 100, [100] * 6
CNN_BATCH = 64
TINY_LR = 1e-9
"""A learning rate at which no network diverges, where only the time matters."""

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
"""Examples and labels of the training, and of the validation."""


def plain_network(features: int, batch_norm: bool) -> nn.Module:
    """Return the MLP with He's initial weights, for 10 classes."""
    layers: list[nn.Module] = [nn.Flatten()]
    for units in HIDDEN:
        layers.append(nn.Linear(features, units))
        if batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(nn.ReLU())
        features = units
    network = nn.Sequential(*layers, nn.Linear(features, 10))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


def plain_cnn(batch_norm: bool) -> nn.Module:
    """Return the small CNN with dropout 0.5, for images of 3 x 32 x 32 and 10 classes."""
    layers: list[nn.Module] = []
    for channels, filters in ((3, 6), (6, 16)):
        layers += [nn.Conv2d(channels, filters, 5), *([nn.BatchNorm2d(filters)] if batch_norm else [])]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    for features, units in ((400, 120), (120, 84)):
        layers += [nn.Dropout(0.5), nn.Linear(features, units), *([nn.BatchNorm1d(units)] if batch_norm else [])]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(84, 10))


def plain_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    batch_size: int = BATCH,
) -> float:
    """Train for one epoch on examples and labels in a random order; return the accuracy on those of the validation."""
    examples, labels = train
    model.train()
    for batch in torch.split(torch.randperm(len(examples)), batch_size):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(examples[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(validation[0]).argmax(1) == validation[1]
        return float(right.float().mean())


def plain_loop(network: str, batch_norm: bool, tensors: Tensors, threads: int) -> Callable[[int], None]:
    """Return a function that trains one network for a number of epochs: "mlp" by SGD, or "cnn" by Adam."""
    torch.set_num_threads(threads)
    train, validation = tensors[:2], tensors[2:]
    optimizer: torch.optim.Optimizer
    if network == "mlp":
        model = plain_network(train[0][0].numel(), batch_norm)
        optimizer = torch.optim.SGD(model.parameters(), lr=TINY_LR, weight_decay=1e-6)
    else:
        model = plain_cnn(batch_norm)
        optimizer = torch.optim.Adam(model.parameters(), lr=TINY_LR)
    epoch = partial(plain_epoch, model, optimizer, train, validation, BATCH if network == "mlp" else CNN_BATCH)

    def run(epochs: int) -> None:
        for _ in range(epochs):
            epoch()

    return run


def search(url: str, path: str, batch_norm: str, epochs: str, trials: str, seed: str, threads: str) -> None:
    """Run trials of the Optuna study "plain" at `url`, on tensors from a file: random sampling, a report an epoch."""
    import optuna

    torch.set_num_threads(int(threads))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tensors = torch.load(path)
    train, validation = tensors[:2], tensors[2:]

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-6, 1e-2, log=True)
        weight_decay = trial.suggest_float("weight_decay", 1e-8, 1e-4, log=True)
        model = plain_network(train[0][0].numel(), batch_norm == "True")
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
        accuracy = 0.0
        for epoch in range(int(epochs)):
            accuracy = plain_epoch(model, optimizer, train, validation)
            trial.report(accuracy, epoch + 1)
        return accuracy

    sampler = optuna.samplers.RandomSampler(seed=int(seed))
    # SQLite's own timeout of 5 s is too short for two processes on a busy machine.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    optuna.load_study(study_name="plain", storage=storage, sampler=sampler).optimize(objective, n_trials=int(trials))


if __name__ == "__main__":
    search(*sys.argv[1:])
