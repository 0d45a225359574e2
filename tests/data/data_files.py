"""Small data sets for tests, in the formats of the real ones."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from hpo.studyfile import Study, parse_study

IMAGE_SHAPE, CIFAR_SHAPE = (1, 28, 28), (3, 32, 32)
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def some_images(count: int, shape: tuple[int, ...] = IMAGE_SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random pixels, and labels that cycle through the ten classes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return pixels, (np.arange(count) % 10).astype(np.uint8)


def idx_images(pixels: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x0803, len(pixels), *pixels.shape[-2:]) + pixels.tobytes()


def idx_labels(labels: np.ndarray) -> bytes:
    return struct.pack(">2I", 0x0801, len(labels)) + labels.tobytes()


def write_idx(folder: Path, count: int = 50, *, seed: int = 0, packed: bool = False, test: int | None = 20) -> Path:
    """Write a folder like that of MNIST: training files, and test files unless `test` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, size in ((TRAIN, count), (TEST, test)):
        if size is not None:
            pixels, labels = some_images(size, seed=seed)
            for name, content in zip(names, (idx_images(pixels), idx_labels(labels)), strict=True):
                put(folder / name, content, packed)
    return folder


def put(path: Path, content: bytes, packed: bool = False) -> None:
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def cifar_records(count: int, seed: int = 0) -> bytes:
    pixels, labels = some_images(count, CIFAR_SHAPE, seed)
    return np.concatenate([labels[:, None], pixels.reshape(count, -1)], axis=1).tobytes()


def write_cifar(folder: Path, sizes: tuple[int, ...] = (20, 10, 30), test: int | None = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes, start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_records(size, seed=number))
    if test is not None:
        (folder / "test_batch.bin").write_bytes(cifar_records(test, seed=99))
    return folder


def study_of(dataset: str, **data: Any) -> Study:
    tree = {
        "name": "s",
        "data": {"dataset": dataset, **data},
        "network": {"kind": "mlp"},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1},
        "search": {"trials": 1},
    }
    return parse_study(tree, "studies/x.toml")
