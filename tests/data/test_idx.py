from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from data_files import IMAGE_SHAPE, TRAIN, idx_images, idx_labels, put, some_images, write_idx
from hypothesis import given
from hypothesis import strategies as st

from hpo.data.known import idx
from hpo.errors import DataError

IMAGES, LABELS = TRAIN
PIXELS, CLASSES = some_images(5)


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        idx.read_training(folder, IMAGE_SHAPE, 10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_written_files_are_read(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, 50, packed=packed)
    raw = idx.read_training(tmp_path, IMAGE_SHAPE, 10)
    pixels, labels = some_images(50)
    np.testing.assert_array_equal(raw.inputs, pixels)
    np.testing.assert_array_equal(raw.targets, labels)
    assert len(idx.read_test(tmp_path, IMAGE_SHAPE, 10)) == 20
    assert idx.count_training(tmp_path, IMAGE_SHAPE) == 50


def test_gzip_is_recognized_by_content(tmp_path: Path) -> None:
    (tmp_path / IMAGES).write_bytes(gzip.compress(idx_images(PIXELS)))
    (tmp_path / f"{LABELS}.gz").write_bytes(idx_labels(CLASSES))
    assert len(idx.read_training(tmp_path, IMAGE_SHAPE, 10)) == 5


def test_the_content_sha256_is_the_same_plain_and_packed(tmp_path: Path) -> None:
    sums = {
        idx.read_training(write_idx(tmp_path / name, packed=packed), IMAGE_SHAPE, 10).content_sha256()
        for name, packed in (("a", False), ("b", True))
    }
    assert len(sums) == 1
    other = idx.read_training(write_idx(tmp_path / "c", seed=1), IMAGE_SHAPE, 10)
    assert other.content_sha256() not in sums


def test_the_test_size_is_unknown_for_gzip(tmp_path: Path) -> None:
    assert idx.test_size(write_idx(tmp_path / "plain"), IMAGE_SHAPE) == 20
    assert idx.test_size(write_idx(tmp_path / "packed", packed=True), IMAGE_SHAPE) is None
    assert idx.test_size(write_idx(tmp_path / "absent", test=None), IMAGE_SHAPE) is None
    (tmp_path / "plain" / "t10k-images-idx3-ubyte").write_bytes(b"12345")
    assert idx.test_size(tmp_path / "plain", IMAGE_SHAPE) is None


DAMAGED = {
    "truncated": (IMAGES, idx_images(PIXELS)[:-1], "truncated"),
    "oversize": (IMAGES, idx_images(PIXELS) + b"x", "longer than in its header"),
    "cut header": (IMAGES, idx_images(PIXELS)[:9], "truncated in its header"),
    "empty": (LABELS, b"", "truncated in its header"),
    "labels as images": (IMAGES, idx_labels(np.zeros(99, np.uint8)), "not an IDX file of images (magic 0x00000801"),
    "images as labels": (LABELS, idx_images(PIXELS), "not an IDX file of labels (magic 0x00000803"),
    "too few labels": (LABELS, idx_labels(CLASSES[:4]), "has 4 labels, but train-images-idx3-ubyte has 5 images"),
    "label above 9": (LABELS, idx_labels(np.array([0, 1, 12, 3, 4], np.uint8)), "label 12 of image 2 is above 9"),
    "other shape": (IMAGES, idx_images(PIXELS[:, :, :20, :27]), "images of 20x27, 28x28 expected"),
    "no images": (IMAGES, idx_images(PIXELS[:0]), "header has 0 items"),
    "absurd count": (IMAGES, struct.pack(">4I", 0x0803, 2**32 - 1, 28, 28), "header has 4,294,967,295 items"),
    "cut gzip": (IMAGES, gzip.compress(idx_images(PIXELS))[:-20], "gzip data is damaged or truncated"),
    "cut gzip trailer": (IMAGES, gzip.compress(idx_images(PIXELS))[:-3], "gzip data is damaged or truncated"),
    "gzip of rubbish": (IMAGES, b"\x1f\x8b" + bytes(100), "gzip data is damaged or truncated"),
    "oversize in gzip": (IMAGES, gzip.compress(idx_images(PIXELS) + b"x"), "longer than in its header"),
}


@pytest.mark.parametrize(("name", "content", "problem"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    write_idx(tmp_path, 5)
    put(tmp_path / name, content)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / name}: ")
    assert problem in message


def test_a_flipped_bit_in_a_gzip_file_is_found(tmp_path: Path) -> None:
    write_idx(tmp_path, 5, packed=True)
    path = tmp_path / f"{LABELS}.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # within the checksum
    path.write_bytes(content)
    assert refusal(tmp_path) == f"{path}: its gzip data is damaged or truncated; copy or download it again"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, 5)
    (tmp_path / LABELS).unlink()
    assert idx.has_training_files(tmp_path)
    assert refusal(tmp_path).startswith(f"{tmp_path / LABELS}: missing")


def test_a_folder_in_a_files_place_is_a_missing_file(tmp_path: Path) -> None:
    write_idx(tmp_path, 5)
    (tmp_path / LABELS).unlink()
    (tmp_path / LABELS).mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path / LABELS}: missing")


@given(
    name=st.sampled_from(TRAIN),
    packed=st.booleans(),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    length=st.none() | st.integers(0, 60),
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    packed: bool,
    edits: list[tuple[int, int]],
    length: int | None,
) -> None:
    folder = write_idx(tmp_path_factory.getbasetemp() / "fuzzed", 2)
    content = idx_images(PIXELS[:2]) if name == IMAGES else idx_labels(CLASSES[:2])
    damaged = bytearray(gzip.compress(content) if packed else content)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    (folder / name).write_bytes(damaged[:length])
    try:
        raw = idx.read_training(folder, IMAGE_SHAPE, 10)
    except DataError as error:
        raw, refused = None, str(error)
    if raw is None:
        assert str(folder / name) in refused or "labels, but" in refused
        assert "\n" not in refused
    else:
        assert raw.inputs.shape == (2, *IMAGE_SHAPE)
        assert raw.targets.max() < 10
