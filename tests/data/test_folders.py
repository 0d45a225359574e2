"""Find data sets in folders, and list them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from data_files import TRAIN, write_cifar, write_idx

from hpo.data import Listing, fetch, list_datasets
from hpo.data.known.catalogue import CATALOGUE, Catalogue, Download
from hpo.data.known.folders import find_folder, require_folder
from hpo.errors import DataError

ORDER = [
    ("mnist", "mnist"),
    ("mnist", "."),
    ("mnist", "MNIST/raw"),
    ("fashion_mnist", "fashion-mnist"),
    ("fashion_mnist", "fashion_mnist"),
    ("fashion_mnist", "."),
    ("fashion_mnist", "FashionMNIST/raw"),
    ("cifar10", "cifar-10-batches-bin"),
    ("cifar10", "."),
]


@pytest.mark.parametrize(("name", "folder"), ORDER, ids=[f"{name} in {folder}" for name, folder in ORDER])
def test_the_layouts_of_a_folder_in_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    (write_cifar if name == "cifar10" else write_idx)(tmp_path / folder)
    place = require_folder(CATALOGUE[name])
    assert place.folder.samefile(tmp_path / folder)
    assert place.origin == "HPO_DATA_DIR"


def test_the_order_is_variable_system_package_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    dataset = dataclasses.replace(CATALOGUE["fashion_mnist"], system=(tmp_path / "system",))
    assert find_folder(dataset) is None
    found = []
    write_idx(cache / "fashion_mnist")
    found.append(require_folder(dataset).origin)
    write_idx(tmp_path / "system", packed=True)
    found.append(require_folder(dataset).origin)
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "named"))
    found.append(require_folder(dataset).origin)  # names nothing that is there: the search goes on
    write_idx(tmp_path / "named" / "FashionMNIST" / "raw")
    found.append(require_folder(dataset).origin)
    assert found == ["cache", "system package", "system package", "HPO_DATA_DIR"]


def test_the_error_for_missing_data_lists_the_searched_folders_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    remedy = "run `hpo data fetch mnist`, or name its folder in HPO_DATA_DIR"
    for named, state in (
        (None, "not set"),
        (str(tmp_path), str(tmp_path)),
        (str(tmp_path / "absent"), f"{tmp_path / 'absent'}: no such folder"),
    ):
        if named:
            monkeypatch.setenv("HPO_DATA_DIR", named)
        with pytest.raises(DataError) as caught:
            require_folder(CATALOGUE["mnist"])
        assert str(caught.value) == f"mnist: not found in HPO_DATA_DIR ({state}), {cache / 'mnist'}; {remedy}"


def small_catalogue(fashion: Path) -> Catalogue:
    """Return the catalogue with the checksum of the labels in `fashion` for Fashion-MNIST."""
    digest = hashlib.sha256((fashion / TRAIN[1]).read_bytes()).hexdigest()
    downloads = (Download(f"{TRAIN[1]}.gz", digest),)
    return {**CATALOGUE, "fashion_mnist": dataclasses.replace(CATALOGUE["fashion_mnist"], downloads=downloads)}


def test_a_folder_with_another_data_set_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    catalogue = small_catalogue(write_idx(tmp_path, 70))
    with pytest.raises(DataError, match="has fashion_mnist"):
        require_folder(catalogue["mnist"], catalogue)
    write_idx(cache / "mnist")
    assert require_folder(catalogue["mnist"], catalogue).origin == "cache"
    assert require_folder(catalogue["fashion_mnist"], catalogue).origin == "HPO_DATA_DIR"


def listed(name: str) -> Listing:
    return next(listing for listing in list_datasets() if listing.name == name)


def test_the_list_has_folders_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert [listing.name for listing in list_datasets()] == list(CATALOGUE)
    assert listed("digits").train_images == 1438
    assert listed("mnist") == Listing("mnist", None, "IDX", None, "not found: hpo data fetch mnist")

    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    folder = write_cifar(tmp_path / "cifar-10-batches-bin", (20, 10))
    assert listed("cifar10") == Listing("cifar10", folder, "CIFAR-10 binary", 30, "HPO_DATA_DIR")
    write_idx(cache / "mnist", 50, packed=True)
    assert listed("mnist") == Listing("mnist", cache / "mnist", "IDX", 50, "cache")


def test_the_list_notes_damage_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / TRAIN[0]).write_bytes(b"rubbish")
    write_cifar(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(b"rubbish")
    assert "truncated in its header" in listed("mnist").note
    assert "not CIFAR-10's binary version" in listed("cifar10").note
    assert listed("mnist").train_images is listed("cifar10").train_images is None


def test_a_user_without_a_home_folder_needs_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "HPO_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # of no user that the system knows
    assert listed("digits").train_images == 1438
    assert "this user has no home folder; set HOME" in listed("cifar10").note
    with pytest.raises(DataError, match="this user has no home folder"):
        fetch("cifar10")
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    write_cifar(tmp_path / "cifar10", (20, 10))
    assert listed("cifar10").train_images == 30
