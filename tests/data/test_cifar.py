from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_files import CIFAR_SHAPE, cifar_records, some_images, write_cifar
from hypothesis import given
from hypothesis import strategies as st

from hpo.data.known import cifar
from hpo.errors import DataError

RECORD = 3073


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        cifar.read_training(folder, CIFAR_SHAPE, 10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_batches_of_any_size_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sizes = tuple(range(1, 12))  # data_batch_10 comes after data_batch_9, not after data_batch_1
    write_cifar(tmp_path, sizes)
    raw = cifar.read_training(tmp_path, CIFAR_SHAPE, 10)
    assert len(raw) == sum(sizes) == cifar.count_training(tmp_path, CIFAR_SHAPE)
    start = 0
    for number, size in enumerate(sizes, start=1):
        pixels, labels = some_images(size, CIFAR_SHAPE, seed=number)
        np.testing.assert_array_equal(raw.inputs[start : start + size], pixels)
        np.testing.assert_array_equal(raw.targets[start : start + size], labels)
        start += size


def test_the_content_sha256_does_not_depend_on_the_files(tmp_path: Path) -> None:
    write_cifar(tmp_path / "two", (4, 6))
    whole = b"".join((tmp_path / "two" / f"data_batch_{number}.bin").read_bytes() for number in (1, 2))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "data_batch_1.bin").write_bytes(whole)
    one, two = (cifar.read_training(tmp_path / name, CIFAR_SHAPE, 10) for name in ("one", "two"))
    assert one.content_sha256() == two.content_sha256()


def test_the_sealed_batch(tmp_path: Path) -> None:
    write_cifar(tmp_path / "with")
    assert cifar.test_size(tmp_path / "with", CIFAR_SHAPE) == len(cifar.read_test(tmp_path / "with", CIFAR_SHAPE, 10))
    write_cifar(tmp_path / "without", test=None)
    assert cifar.test_size(tmp_path / "without", CIFAR_SHAPE) is None
    with pytest.raises(DataError, match=r"test_batch\.bin: cannot be read"):
        cifar.read_test(tmp_path / "without", CIFAR_SHAPE, 10)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (cifar_records(3)[:-1], "truncated, too large or not CIFAR-10's binary version (9,218 bytes"),
        (cifar_records(3) + b"x", "truncated, too large or not CIFAR-10's binary version (9,220 bytes"),
        (b"", "truncated, too large"),
        (cifar_records(3) + b"\x0a" + bytes(RECORD - 1), "label 10 of image 3 is above 9"),
    ],
    ids=["truncated", "oversize", "empty", "label above 9"],
)
def test_a_damaged_batch_is_named_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'data_batch_2.bin'}: ")
    assert problem in message


def test_a_gap_in_the_numbers_is_a_missing_file(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'data_batch_2.bin'}: missing")


def test_a_folder_in_a_files_place(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    (tmp_path / "data_batch_2.bin").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'data_batch_2.bin'}: ")


def test_a_folder_without_batches_has_no_training_files(tmp_path: Path) -> None:
    assert not cifar.has_training_files(tmp_path)
    assert not cifar.has_training_files(tmp_path / "absent")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'data_batch_1.bin'}: missing")


@given(content=st.binary(max_size=50), records=st.integers(0, 2), label=st.integers(0, 255))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, records: int, label: int
) -> None:
    folder = write_cifar(tmp_path_factory.getbasetemp() / "fuzzed", (1,))
    (folder / "data_batch_1.bin").write_bytes((bytes([label]) + bytes(RECORD - 1)) * records + content)
    try:
        labels = cifar.read_training(folder, CIFAR_SHAPE, 10).targets.tolist()
    except DataError as error:
        refused, labels = str(error), None
    if labels is None:
        assert str(folder / "data_batch_1.bin") in refused
    else:
        assert not content
        assert labels == [label] * records
