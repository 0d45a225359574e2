"""Objective function written for Optuna: a small network on the digits; each trial chooses its layers."""

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)  # so small a network is fastest on one thread
EPOCHS, BATCH = 8, 64
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images / 16, dtype=torch.float32)
y = torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
held_out, training = order[:300], order[300:]


def network(trial: optuna.Trial) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 64
    for layer in range(trial.suggest_int("layers", 1, 3)):
        units = trial.suggest_int(f"units_{layer}", 16, 128, log=True)
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(trial.suggest_float(f"dropout_{layer}", 0.0, 0.5))]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 10))


def objective(trial: optuna.Trial) -> float:
    torch.manual_seed(trial.number)
    model = network(trial)
    trial.set_user_attr("parameters", sum(each.numel() for each in model.parameters()))
    rule = trial.suggest_categorical("optimizer", ["SGD", "Adam"])
    optimizer = getattr(torch.optim, rule)(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    accuracy = 0.0
    for epoch in range(EPOCHS):
        model.train()
        for batch in training[torch.randperm(len(training))].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(x[held_out]).argmax(1) == y[held_out]).float().mean().item()
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy
