"""Data of digits-labels.toml and rare-digit.toml: scikit-learn's digits with other targets, 30% of them sealed."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
images = digits.images / 16  # constants of the scanner, not of the data: no leak
RARE, RARE_IMAGES = 8, 50


def part(x, y, classes, test):
    """Return the test set, or all other examples."""
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, stratify=classes, random_state=0)
    return (x_test, y_test) if test else (x_train, y_train)


def odd_and_large(test=False):
    """Return two labels of each digit: odd or not, 5 or more or not."""
    labels = np.stack([digits.target % 2, digits.target >= 5], axis=1).astype(int)
    return *part(images, labels, digits.target, test), ["odd", "5 or more"]


def rare_eight(test=False):
    """Return two classes: 50 of the eights (3%) and all other digits."""
    is_eight = digits.target == RARE
    rows = np.sort(np.concatenate([np.flatnonzero(~is_eight), np.flatnonzero(is_eight)[:RARE_IMAGES]]))
    return *part(images[rows], is_eight[rows].astype(int), is_eight[rows], test), ["other", "eight"]
