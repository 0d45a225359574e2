"""Catalogue of known data sets: shapes, class names, folders, mirrors and published checksums.

A frozen table that opens no file and no connection. Functions take the catalogue as an argument, so that a private
mirror or a test server can have its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from hpo.errors import UsageError, nearest


@dataclass(frozen=True)
class Download:
    """One file on the mirrors.

    Without `members` it is a gzip file, and `sha256` is the hash of its uncompressed content, because mirrors compress
    differently. With `members` it is a tar.gz archive with that hash, from which the members are extracted.
    """

    file: str
    sha256: str
    members: tuple[str, ...] = ()

    @property
    def contents(self) -> tuple[str, ...]:
        """The names of the unpacked files."""
        return self.members or (self.file.removesuffix(".gz"),)


DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Dataset:
    """A known data set: `names` are the class names in the order of their labels, `task` is the kind of its task.

    `folders` are searched in HPO_DATA_DIR ("." is that folder itself); `system` has absolute folders.
    """

    name: str
    format: Literal["scikit-learn", "idx", "cifar"]
    shape: tuple[int, ...]
    names: tuple[str, ...] = DIGITS
    task: str = "classification"
    folders: tuple[str, ...] = ()
    system: tuple[Path, ...] = ()
    mirrors: tuple[str, ...] = ()
    downloads: tuple[Download, ...] = ()


Catalogue = Mapping[str, Dataset]


def known_dataset(name: str, catalogue: Catalogue) -> Dataset:
    """Return the data set called `name`; raise UsageError with the known names for an unknown one."""
    if name not in catalogue:
        raise UsageError(f"unknown data set '{name}'{nearest(name, catalogue)}; known: {', '.join(catalogue)}")
    return catalogue[name]


def _idx_downloads(train_images: str, train_labels: str, test_images: str, test_labels: str) -> tuple[Download, ...]:
    return (
        Download("train-images-idx3-ubyte.gz", train_images),
        Download("train-labels-idx1-ubyte.gz", train_labels),
        Download("t10k-images-idx3-ubyte.gz", test_images),
        Download("t10k-labels-idx1-ubyte.gz", test_labels),
    )


_DATASETS = (
    Dataset("digits", "scikit-learn", (1, 8, 8)),
    Dataset(
        "mnist",
        "idx",
        (1, 28, 28),
        folders=("mnist", ".", "MNIST/raw"),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        downloads=_idx_downloads(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    Dataset(
        "fashion_mnist",
        "idx",
        (1, 28, 28),
        names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        folders=("fashion-mnist", "fashion_mnist", ".", "FashionMNIST/raw"),
        system=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's dataset-fashion-mnist
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # no TLS; the checksum protects it
        ),
        downloads=_idx_downloads(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    Dataset(
        "cifar10",
        "cifar",
        (3, 32, 32),
        names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        folders=("cifar-10-batches-bin", "cifar10", "."),
        mirrors=(
            # The authors' server (cs.toronto.edu) can take an hour for a download, so it comes second.
            "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/",
            "https://www.cs.toronto.edu/~kriz/",
        ),
        downloads=(
            Download(
                "cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                members=(*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"),
            ),
        ),
    ),
    Dataset("breast_cancer", "scikit-learn", (30,), names=("malignant", "benign")),
    Dataset("wine", "scikit-learn", (13,), names=("class_0", "class_1", "class_2")),
    Dataset("diabetes", "scikit-learn", (10,), names=(), task="regression"),
)

CATALOGUE: Catalogue = MappingProxyType({dataset.name: dataset for dataset in _DATASETS})
