"""Study files that tests of several rooms use."""

from __future__ import annotations

TINY = """\
name = "tiny"
description = "a study of the tests"

[data]
dataset = "digits"
train_size = 200

[network]
kind = "mlp"
hidden = [16]
dropout = { low = 0.0, high = 0.5 }

[optimizer]
lr = { low = 1e-3, high = 0.5, log = true }

[training]
epochs = 2
batch_size = 40
precision = "float32"

[search]
trials = 6
sampler = "random"
population = 4
"""
