"""User data from .npz files, folders and functions, and its errors."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpo.data import Split, check_test, load_split, load_test
from hpo.data.user.arrays import encode_groups, encode_labels
from hpo.errors import CodeError, DataError, HpoError, StudyFileError
from hpo.studyfile import Study, parse_study

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
LABELS = np.arange(40) % 4


def user_study(dataset: str, folder: Path, **data: Any) -> Study:
    tree = {
        "name": "s",
        "data": {"dataset": dataset, "stratify": False, **data},
        "network": {"kind": "mlp"},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1},
        "search": {"trials": 1},
    }
    return parse_study(tree, "x.toml", folder)


def write_npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "images.npz"
    np.savez(path, **{"x": BYTES, "y": LABELS, **arrays})
    return path


def npz_split(folder: Path, **arrays: Any) -> Split:
    write_npz(folder, **arrays)
    return load_split(user_study("npz:images.npz", folder))


def refusal(study: Study, read: Callable[[Study], object] = load_split) -> str:
    with pytest.raises(HpoError) as caught:
        read(study)
    assert isinstance(caught.value, DataError | CodeError | StudyFileError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return all examples of a split in the order of the source."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(split.train) + len(split.validation))
    pixels = np.concatenate([split.validation.inputs, split.train.inputs])
    labels = np.concatenate([split.validation.targets, split.train.targets])
    return pixels[np.argsort(order)], labels[np.argsort(order)]


def png(folder: Path, name: str, pixels: np.ndarray, mode: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(folder / name)
    return folder / name


def write_folder(root: Path, classes: str = "ab", each: int = 5, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for name in classes:
        for number in range(each):
            png(root / name, f"{number}.png", random.integers(0, 256, (4, 3), dtype=np.uint8))
    return root


@pytest.mark.parametrize(
    ("x", "image"),
    [
        (BYTES, lambda i: BYTES[i][None]),
        (BYTES[:, :, :, None], lambda i: BYTES[i][None]),
        (BYTES[:, None], lambda i: BYTES[i][None]),
        (np.stack([BYTES, BYTES // 2, BYTES // 3], 3), lambda i: np.stack([BYTES[i], BYTES[i] // 2, BYTES[i] // 3])),
        (np.stack([BYTES, BYTES // 2, BYTES // 3], 1), lambda i: np.stack([BYTES[i], BYTES[i] // 2, BYTES[i] // 3])),
        (np.stack([BYTES] * 7, 1), lambda i: np.stack([BYTES[i]] * 7)),
        (BYTES.reshape(40, 30), lambda i: BYTES[i].reshape(30)),
    ],
    ids=["N H W", "N H W 1", "N 1 H W", "N H W 3", "N 3 H W", "N 7 H W", "N features"],
)
def test_the_axes_are_recognized(x: np.ndarray, image: Callable[[int], np.ndarray], tmp_path: Path) -> None:
    pixels, labels = whole(npz_split(tmp_path, x=x))
    for index in (0, 17):
        np.testing.assert_allclose(pixels[index], image(index) / 255, rtol=1e-6)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_stay_unchanged(kind: type, tmp_path: Path) -> None:
    x = (BYTES * 3.0 - 300).astype(kind)
    split = npz_split(tmp_path, x=x)
    assert split.train.inputs.dtype == np.float32
    assert split.white is None
    np.testing.assert_array_equal(whole(split)[0][:, 0], x.astype(np.float32))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64])
def test_integers_stay_integers_with_their_axes(kind: type, tmp_path: Path) -> None:
    hashes = set()
    for x in (BYTES.astype(kind) // 2, BYTES.reshape(40, 30).astype(kind) // 2, BYTES[:, :, :, None].astype(kind) // 2):
        split = npz_split(tmp_path, x=x)
        assert (split.train.inputs.dtype, split.validation.inputs.dtype, split.white) == (np.int64, np.int64, None)
        np.testing.assert_array_equal(whole(split)[0], x)
        hashes.add(split.content_sha256)
        assert split.content_sha256 == npz_split(tmp_path, x=x.astype(np.int64)).content_sha256
        assert split.content_sha256 != npz_split(tmp_path, x=x.astype(np.float32)).content_sha256
    assert len(hashes) == 3


def test_the_hash_of_a_table_is_that_of_the_records_that_studies_have_stored(tmp_path: Path) -> None:
    numbers = np.arange(120, dtype=np.float32).reshape(40, 3) / 7
    split = npz_split(tmp_path, x=numbers)
    expected = hashlib.sha256(b'40x1x1x3 float32 ["0", "1", "2", "3"] ')
    expected.update(numbers.tobytes())
    expected.update(LABELS.astype(np.int64).tobytes())
    assert split.train.inputs.shape[1:] == (3,)
    assert split.content_sha256 == expected.hexdigest()


def test_classes_have_names(tmp_path: Path) -> None:
    assert npz_split(tmp_path).names == ("0", "1", "2", "3")
    words = np.array(["cat", "ant", "dog", "bee"])
    split = npz_split(tmp_path, y=words[LABELS])
    assert split.names == ("ant", "bee", "cat", "dog")
    np.testing.assert_array_equal(np.array(split.names)[whole(split)[1]], words[LABELS])
    for strings in (words.astype(object), words.astype(np.dtypes.StringDType())):
        labels, names = encode_labels(strings[LABELS], "y", None)
        np.testing.assert_array_equal(labels, np.argsort(np.argsort(words))[LABELS])
        assert names == split.names
        assert {type(name) for name in names} == {str}
    split = npz_split(tmp_path, classes=words)
    assert split.names == tuple(words)
    np.testing.assert_array_equal(whole(split)[1], LABELS)
    split = npz_split(tmp_path, y=words[LABELS], classes=words)
    np.testing.assert_array_equal(whole(split)[1], LABELS)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": LABELS[:-1]}, "images.npz: y has shape [39], but one label for each example is [40]"),
        (
            {"y": np.eye(4)[LABELS]},
            "images.npz: y has shape [40, 4], but one label for each example is [40]. For numbers or several labels",
        ),
        (
            {"y": LABELS * 1.0},
            "images.npz: y has type float64; labels must be whole numbers from 0, or names (strings). For numbers or",
        ),
        ({"y": LABELS - 1}, "images.npz: y: label -1 of example 0; labels must be whole numbers from 0 without a gap"),
        ({"y": LABELS + 1}, "images.npz: y: labels are 1 to 4, but must start at 0; subtract 1, or use class names"),
        ({"y": LABELS + 10**9}, "images.npz: y: labels are 1000000000 to 1000000003, but must start at 0"),
        ({"y": LABELS * 2}, "npz:images.npz: no training example of class 1"),
        ({"y": LABELS * 0}, "images.npz: y: only one class ('0'); a classifier needs at least two"),
        ({"y": np.where(LABELS == 3, np.uint64(2**63 + 5), np.uint64(1))}, "y: label 9223372036854775813 of example 3"),
        ({"y": np.full(40, "cat")}, "images.npz: y: only one class ('cat')"),
        ({"y": LABELS, "classes": np.array(["a", "b"])}, "y: label 3 of example 3; labels must be 0 to 1"),
        ({"classes": np.array(["a", "b", "c", "d", "e"])}, "no training example of class e"),
        ({"classes": np.array(["a", "b", "a", "d"])}, "images.npz: y: two classes have the same name"),
        ({"classes": np.array(["a", "b", "", "d"])}, "images.npz: y: '' is not a valid class name"),
        ({"classes": np.arange(4)}, "images.npz: classes has type int64; it must be a list of strings"),
        ({"y": np.array(["a", "b"])[LABELS % 2], "classes": np.array(["a", "c"])}, "y: 'b' is not one of the classes"),
        ({"x": BYTES > 100}, "images.npz: x has type bool; it must be uint8 (0 to 255), floats, or integers"),
        (
            {"x": np.full((40, 3), 2**63, np.uint64)},
            "images.npz: x has 9223372036854775808, which is too large for int64",
        ),
        ({"x": LABELS.astype(np.int32)}, "images.npz: x has shape [40]; it must be [N, length] or have further axes"),
        ({"x": np.zeros((40, 1, 2, 3, 4))}, "x has shape [40, 1, 2, 3, 4]; it must be [N, features], [N, H, W], "),
        ({"x": np.where(np.arange(40) == 7, np.nan, 1.0)[:, None, None] * BYTES}, "example 7 has a value that is NaN"),
        ({"x": np.full((40, 2, 2), 1e300)}, "example 0 has a value that is NaN, infinite or too large for float32"),
        ({"x": BYTES[:0], "y": LABELS[:0]}, "images.npz: x has no examples"),
        ({"x": BYTES[:, :0]}, "images.npz: x has shape [40, 0, 5]: its examples are empty"),
        (
            {"x": LABELS * 1.0},
            "images.npz: x has shape [40]; it must be [N, features], [N, H, W], [N, H, W, C] or [N, C, H, W]",
        ),
        (
            {"x": np.zeros((40, 3, 9, 3), np.uint8)},
            "has shape [40, 3, 9, 3], which may be [N, C, H, W] or [N, H, W, C]",
        ),
        ({"y": np.array([None] * 40)}, "images.npz: y has Python objects, which hpo does not unpickle"),
    ],
)
def test_the_error_for_an_invalid_array_names_it(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_npz(tmp_path, **arrays)
    assert said in refusal(user_study("npz:images.npz", tmp_path))


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", x=BYTES, labels=LABELS)
    assert f"{tmp_path / 'images.npz'}: has no array 'y' (it has x, labels)" in refusal(
        user_study("npz:images.npz", tmp_path)
    )


@pytest.mark.parametrize("what", ["text", "empty", "npy", "cut", "damaged", "folder", "missing"])
def test_the_error_for_an_invalid_npz_file_names_it(what: str, tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    content = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        single = io.BytesIO()
        np.save(single, BYTES)
        middle = content.index(BYTES.tobytes()) + 100
        contents = {
            "text": b"x,y\n1,2\n",
            "empty": b"",
            "npy": single.getvalue(),
            "cut": content[:-30],
            "damaged": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }
        path.write_bytes(contents[what])
    assert refusal(user_study("npz:images.npz", tmp_path)).startswith("images.npz" if what == "missing" else str(path))


def test_only_a_test_evaluation_reads_the_test_arrays(tmp_path: Path) -> None:
    sealed = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
    path = write_npz(tmp_path, x_test=sealed, y_test=LABELS[:12])
    study = user_study("npz:images.npz", tmp_path)
    images = load_test(load_split(study))
    np.testing.assert_allclose(images.inputs[:, 0], sealed / np.float32(255), rtol=1e-6)
    np.testing.assert_array_equal(images.targets, LABELS[:12])
    content = path.read_bytes()
    path.write_bytes(content.replace(sealed.tobytes(), bytes(sealed.size)))  # who reads it now finds a wrong checksum
    split = load_split(study)
    check_test(study)
    assert split.test_size == 12
    with pytest.raises(DataError, match=r"images\.npz: is not an \.npz file, or is damaged"):
        load_test(split)


def test_test_arrays_must_match_the_training_arrays(tmp_path: Path) -> None:
    words = np.array(["ant", "bee", "cat", "dog"])
    split = npz_split(tmp_path, y=words[LABELS], x_test=BYTES[:3], y_test=words[[3, 3, 1]])
    np.testing.assert_array_equal(load_test(split).targets, [3, 3, 1])  # a class may be missing there
    for arrays, said in [
        (
            {"y_test": np.array(["ant", "bea", "cat"])},
            r"y_test: 'bea' is not one of the classes \(did you mean 'bee'\?\)",
        ),
        ({"x_test": BYTES[:3, :4]}, "test examples are 1 x 4 x 5 bytes, but training examples 1 x 6 x 5 bytes"),
        ({"x_test": BYTES[:3] / 255}, "test examples are 1 x 6 x 5 numbers, but training examples 1 x 6 x 5 bytes"),
        ({"x_test": BYTES[:3].astype(int)}, "test examples are 6 x 5 integers, but training examples 1 x 6 x 5 bytes"),
        ({"x_test": BYTES[:4]}, r"y_test has shape \[3\], but one label for each example is \[4\]"),
    ]:
        split = npz_split(tmp_path, **{"y": words[LABELS], "x_test": BYTES[:3], "y_test": words[:3], **arrays})
        with pytest.raises(DataError, match=said):
            load_test(split)


def test_the_error_for_a_missing_test_set(tmp_path: Path) -> None:
    split = npz_split(tmp_path)
    assert split.test_size == 0
    no_test = "has no test set"
    assert no_test in refusal(user_study("npz:images.npz", tmp_path), check_test)
    write_folder(tmp_path / "pictures")
    study = user_study("folder:pictures", tmp_path)
    assert load_split(study).test_size == 0
    assert no_test in refusal(study, check_test)
    write_npz(tmp_path, x_test=BYTES)
    assert "has no array 'y_test'" in refusal(user_study("npz:images.npz", tmp_path))


def test_the_hash_depends_on_the_content(tmp_path: Path) -> None:
    def sum_of(**arrays: Any) -> str:
        return npz_split(tmp_path, **arrays).content_sha256

    before = sum_of()
    np.savez_compressed(tmp_path / "packed.npz", y=LABELS.astype(np.uint8), x=BYTES)
    assert load_split(user_study("npz:packed.npz", tmp_path)).content_sha256 == before
    other = BYTES.copy()
    other[39, 5, 4] ^= 1
    changed = [
        sum_of(x=other),
        sum_of(y=LABELS[::-1]),
        sum_of(classes=np.array(list("abcd"))),
        sum_of(x=BYTES.astype(np.float32)),
        sum_of(x=BYTES.reshape(40, 5, 6)),
    ]
    assert len({before, *changed}) == 6


def test_a_folder_has_a_subfolder_for_each_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", "dog")
    (root / "d" / ".DS_Store").write_bytes(b"not an image")
    (root / ".git").mkdir()
    (root / "README.txt").write_text("about these images")
    split = load_split(user_study("folder:pictures", tmp_path))
    assert split.names == ("d", "g", "o")
    pixels, labels = whole(split)
    assert pixels.shape == (15, 1, 4, 3)
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], 5))
    np.testing.assert_allclose(pixels[7, 0], np.asarray(Image.open(root / "g" / "2.png")) / 255, rtol=1e-6)


def test_images_have_colours_if_any_has(tmp_path: Path) -> None:
    red = np.zeros((4, 3, 3), np.uint8)
    red[..., 0] = 204  # of the palette
    opaque = np.dstack([red, np.full((4, 3), 255, np.uint8)])
    for name in "ab":
        png(tmp_path / name, "0.png", red[..., 0])
        png(tmp_path / name, "1.png", red)
        png(tmp_path / name, "2.png", red, "P")
        png(tmp_path / name, "3.png", opaque)
        Image.fromarray(red).save(tmp_path / name / "4.bmp")
    pixels, _ = whole(load_split(user_study(f"folder:{tmp_path}", tmp_path)))
    assert pixels.shape == (10, 3, 4, 3)
    grey, *coloured = np.rint(pixels[:5] * 255).astype(np.uint8)
    np.testing.assert_array_equal(grey, np.full((3, 4, 3), 204))
    for each in coloured:
        np.testing.assert_array_equal(each, red.transpose(2, 0, 1))


def test_train_and_test_folders_and_test_stays_sealed(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", "ab")
    write_folder(tmp_path / "test", "b", each=2, seed=1)
    study = user_study("folder:.", tmp_path)
    split = load_split(study)
    assert (split.names, len(split.train) + len(split.validation), split.test_size) == (("a", "b"), 10, 2)
    images = load_test(split)
    np.testing.assert_array_equal(images.targets, [1, 1])
    np.testing.assert_allclose(images.inputs[1, 0], np.asarray(Image.open(tmp_path / "test/b/1.png")) / 255, rtol=1e-6)
    (tmp_path / "test/b/1.png").write_bytes(b"nobody reads this")
    assert load_split(study).test_size == 2
    check_test(study)
    with pytest.raises(DataError, match=r"test/b/1\.png: is not an image"):
        load_test(split)
    write_folder(tmp_path / "test", "c")
    assert "test/c: is not a class" in refusal(study, check_test)
    write_folder(tmp_path / "more", "ab")
    assert "more: only val and test may be beside train" in refusal(study)


def test_test_images_have_the_channels_of_training_images(tmp_path: Path) -> None:
    grey, coloured = BYTES[0], np.stack([BYTES[1]] * 3, 2)
    for name in "ab":
        for number in range(3):
            png(tmp_path / "some/train" / name, f"{number}.png", coloured if number == 1 else grey)
            png(tmp_path / "none/train" / name, f"{number}.png", grey)
        png(tmp_path / "some/test" / name, "0.png", grey)
        png(tmp_path / "none/test" / name, "0.png", coloured if name == "b" else grey)
    images = load_test(load_split(user_study("folder:some", tmp_path)))
    np.testing.assert_allclose(images.inputs[1], np.stack([grey] * 3) / 255, rtol=1e-6)
    with pytest.raises(DataError, match=r"none/test/b/0\.png: has colours, but all training images are grey"):
        load_test(load_split(user_study("folder:none", tmp_path)))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "test", "plane"):
        png(tmp_path / name, "0.png", BYTES[0])
        png(tmp_path / name, "1.png", BYTES[1])
    split = load_split(user_study("folder:.", tmp_path))
    assert split.names == ("plane", "test", "train")
    assert split.test_size == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: png(root / "b", "7.png", BYTES[0]),
            r"b/7.png: has 5 x 6 pixels, \S+a/0.png has 3 x 4; bring all",
        ),
        (lambda root: (root / "b/7.txt").write_text("hello"), r"b/7.txt: is not an image \(PNG, JPEG, .*; remove it"),
        (lambda root: (root / "b/more").mkdir(), r"b/more: is a folder in a class"),
        (lambda root: (root / "c").mkdir(), r"pictures/c: has no images"),
        (lambda root: (root / "b").rename(root / ".b"), r"pictures: only one class \(a\)"),
        (lambda root: [(root / name).rename(root / f".{name}") for name in "ab"], r"pictures: no subfolders"),
        (lambda root: (root / "b").rename(root / "b\n"), r"is not a valid class name"),
    ],
    ids=["size", "text", "nested", "empty class", "one class", "none", "name"],
)
def test_the_error_for_an_invalid_folder_names_it(change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    change(write_folder(tmp_path / "pictures"))
    with pytest.raises(DataError, match=said) as caught:
        load_split(user_study("folder:pictures", tmp_path))
    assert "\n" not in str(caught.value)


FUNCTION = """
import numpy as np

def load(test=False):
    with open(__file__ + ".log", "a") as log:
        log.write(f"{test}\\n")
    count = 6 if test else 20
    return np.full((count, 2, 2), 0.5), [name for _ in range(count // 2) for name in ("no", "yes")]

def names():
    return [[[1.0, 2.0]]] * 8, [0, 1] * 4, ["left", "right"]

def one():
    return 3

def masked():
    return np.ma.masked_less([[0.5, 0.1]] * 8, 0.3), [0, 1] * 4

def mixed():
    return [[0.5, 0.1]] * 8, ["no", 1] * 4

def missing():
    return [[0.5, 0.1]] * 8, np.array(["no", None] * 4, object)

def test_third():
    return [[0.5, 0.1]] * 8, [0, 1] * 4, [[0.5, 0.1]] * 8

def text():
    return [[0.5, 0.1]] * 8, [0, 1] * 4, "ab"

def three():
    return 1, 2, 3, 4

def fails():
    return 1 / 0

def ragged():
    return [[1, 2], [3]], [0, 1]

value = 3
"""


def test_a_function_is_called_for_test_examples_by_a_test_evaluation_only(tmp_path: Path) -> None:
    (tmp_path / "my_data.py").write_text(FUNCTION)
    study = user_study("my_data.py:load", tmp_path)
    split = load_split(study)
    check_test(study)
    assert (split.names, split.test_size) == (("no", "yes"), None)
    assert (tmp_path / "my_data.py.log").read_text() == "False\n"
    assert len(load_test(split)) == 6
    assert (tmp_path / "my_data.py.log").read_text() == "False\nTrue\n"
    split = load_split(user_study("my_data.py:names", tmp_path))
    assert (split.names, split.test_size, split.train.inputs.shape[1:]) == (("left", "right"), 0, (1, 1, 2))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one", "my_data.py:one: returned int; it must return x, y or x, y, class names or a dictionary"),
        ("three", "my_data.py:three: returned 4 values"),
        ("masked", "my_data.py:masked: x has masked elements; fill them, or remove these examples"),
        (
            "mixed",
            "my_data.py:mixed: y has type object: the label of example 1 has type int, others are strings; labels",
        ),
        (
            "missing",
            "my_data.py:missing: y has type object: the label of example 1 has type NoneType, others are strings",
        ),
        ("test_third", "my_data.py:test_third: the class names must be a list of strings (got list)"),
        ("text", "my_data.py:text: the class names must be a list of strings (got str)"),
        ("fails", "my_data.py:fails: ZeroDivisionError: division by zero (my_data.py, line "),
        ("ragged", "my_data.py:ragged: x cannot be converted to an array"),
        ("value", "my_data.py:value: is not a function, but of type int"),
        ("lod", "my_data.py has no 'lod' (did you mean 'load'?)"),
    ],
)
def test_the_error_for_an_invalid_function_names_it(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "my_data.py").write_text(FUNCTION)
    assert refusal(user_study(f"my_data.py:{name}", tmp_path)).startswith(said)


def test_paths_are_relative_to_the_study_file_or_else_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    study = user_study("npz:images.npz", there)
    said = refusal(study)
    assert said.startswith(f"images.npz: not found in {there} or {here}; ")
    write_npz(here)
    assert load_split(study).names == ("0", "1", "2", "3")
    write_npz(there, classes=np.array(list("abcd")))
    assert load_split(study).names == tuple("abcd")
    assert load_split(user_study(f"npz:{here / 'images.npz'}", there)).names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    "written", ["npz:", "folder:", "nzp:images.npz", "my_data.txt:load", "my_data.py:", "npz:a\nb"]
)
def test_an_invalid_data_set_is_refused_at_its_key(written: str, tmp_path: Path) -> None:
    with pytest.raises(
        StudyFileError, match=r"^x\.toml: data\.dataset: must be table:FILE, npz:FILE, folder:FOLDER or FILE\.py:"
    ):
        user_study(written, tmp_path)


def own_validation(folder: Path, kind: str) -> str:
    """Write data with a validation set, 40 training and 12 validation examples, and return the data set's name."""
    if kind == "npz":
        write_npz(folder, x_val=BYTES[:12], y_val=LABELS[:12])
        return "npz:images.npz"
    if kind == "folder":
        write_folder(folder / "train", "abcd", each=10)
        write_folder(folder / "val", "abcd", each=3, seed=1)
        return "folder:."
    (folder / "my_data.py").write_text(
        "import numpy as np\n\ndef load(test=False):\n"
        "    x, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 4\n"
        "    return {'x': x, 'y': y, 'x_val': -x[:12], 'y_val': y[:12], 'classes': list('abcd')}\n"
    )
    return "my_data.py:load"


@pytest.mark.parametrize("kind", ["npz", "folder", "function"])
def test_a_validation_set_of_the_data_is_used_whole(kind: str, tmp_path: Path) -> None:
    name = own_validation(tmp_path, kind)
    split = load_split(user_study(name, tmp_path, stratify="auto"))
    assert (len(split.train), len(split.validation)) == (40, 12)
    assert split.method == "the validation set of the data"
    if kind == "npz":
        np.testing.assert_allclose(split.validation.inputs[:, 0], BYTES[:12] / np.float32(255), rtol=1e-6)
        np.testing.assert_array_equal(split.validation.targets, LABELS[:12])
    fewer = load_split(user_study(name, tmp_path, stratify="auto", train_size=20))
    np.testing.assert_array_equal(np.bincount(fewer.train.targets), [5, 5, 5, 5])
    assert len(fewer.validation) == 12
    assert fewer.split_sha256 != split.split_sha256
    plain = load_split(user_study(name, tmp_path, validation=0.2))  # stratify = false: as before hpo knew these sets
    assert (len(plain.train), len(plain.validation)) == (32, 8)
    assert plain.content_sha256 != split.content_sha256
    assert plain.warning.startswith(f"{name}: its validation set is not used, because data.validation is 0.2")


@pytest.mark.parametrize("kind", ["npz", "folder", "function"])
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"validation": 0.2}, "data.validation: must not be given: {name} has a validation set (got 0.2)"),
        ({"stratify": True}, "data.stratify: is not used: {name} has a validation set (got true)"),
        ({"order": "time"}, "data.order: is not used: {name} has a validation set (got 'time')"),
        ({"train_size": 41}, "data.train_size: must be at most 40, the training examples of {name} (got 41)"),
    ],
    ids=["validation", "stratify", "order", "train_size"],
)
def test_keys_that_contradict_a_validation_set_are_errors(
    kind: str, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    name = own_validation(tmp_path, kind)
    study = user_study(name, tmp_path, **{"stratify": "auto", **keys})
    assert refusal(study) == f"x.toml: {said.format(name=name)}"


def test_the_validation_set_changes_the_hash_of_the_data_and_must_match_the_training_arrays(tmp_path: Path) -> None:
    def split_with(**arrays: Any) -> Split:
        write_npz(tmp_path, **{"x_val": BYTES[:12], "y_val": LABELS[:12], **arrays})
        return load_split(user_study("npz:images.npz", tmp_path))

    hashes = {split_with().content_sha256, split_with(x_val=BYTES[1:13]).content_sha256}
    assert len(hashes | {split_with(y_val=LABELS[1:13]).content_sha256}) == 3
    assert split_with(y_val=LABELS[:12] % 2).warning == (
        "npz:images.npz: no validation example of 2 classes ('2', '3'); add some to the validation set"
    )
    for arrays, said in [
        ({"y_val": LABELS[:11]}, "y_val has shape [11], but one label for each example is [12]"),
        ({"y_val": LABELS[:12] + 1}, "y_val: label 4 of example 3; labels must be 0 to 3"),
        ({"x_val": BYTES[:12, :4]}, "validation examples are 1 x 4 x 5 bytes, but training examples 1 x 6 x 5 bytes"),
    ]:
        with pytest.raises(DataError) as caught:
            split_with(**arrays)
        assert said in str(caught.value)
    write_npz(tmp_path, x_val=BYTES[:12])
    assert "has no array 'y_val' (it has x, y, x_val)" in refusal(user_study("npz:images.npz", tmp_path))
    write_folder(tmp_path / "train", "ab")
    write_folder(tmp_path / "val", "ac")
    assert "val/c: is not a class of the training images" in refusal(user_study("folder:.", tmp_path))


@pytest.mark.parametrize(
    "groups",
    [
        LABELS + 7,
        LABELS * 0.5,
        np.array(["a", "b", "c", "d"])[LABELS],
        np.array(["a", "b", "c", "d"])[LABELS].astype(np.dtypes.StringDType()),
    ],
    ids=["integers", "floats", "strings", "StringDType"],
)
def test_groups_are_numbers_or_strings(groups: np.ndarray, tmp_path: Path) -> None:
    assert encode_groups(groups, "g", 40).tolist() == LABELS.tolist()
    assert encode_groups(np.array(["b", "a"], object), "g", 2).tolist() == [1, 0]


def test_groups_come_from_an_array_or_a_key(tmp_path: Path) -> None:
    sites = np.arange(40) // 4
    write_npz(tmp_path, site=sites)
    study = user_study("npz:images.npz", tmp_path, groups="site", stratify="auto")
    split = load_split(study)
    assert split.method == "by group (site), 8 groups for training and 2 for validation, stratified by class, seed 0"
    assert (len(split.train), len(split.validation)) == (32, 8)
    assert "has no array 'sit' (it has x, y, site)" in refusal(user_study("npz:images.npz", tmp_path, groups="sit"))
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n\ndef load():\n    x = np.load('images.npz')\n"
        "    return {name: x[name].tolist() if name == 'site' else x[name] for name in x}\n"
        "def pair():\n    return load()['x'], load()['y']\n".replace("'images.npz'", repr(str(tmp_path / "images.npz")))
    )
    same = load_split(user_study("my_data.py:load", tmp_path, groups="site", stratify="auto"))
    assert (same.split_sha256, same.content_sha256) == (split.split_sha256, split.content_sha256)
    assert refusal(user_study("my_data.py:load", tmp_path, groups="sit")) == (
        "my_data.py:load: returned no 'sit' (data.groups), only x, y, site"
    )
    assert "pair: returned no 'site' (data.groups), only x, y" in refusal(
        user_study("my_data.py:pair", tmp_path, groups="site")
    )


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (LABELS[:39], "site (data.groups) has shape [39], but one group for each example is [40]"),
        (np.where(LABELS == 3, np.nan, 1.0), "site (data.groups): the group of example 3 is NaN or infinite"),
        (LABELS * 1j, "site (data.groups) has type complex128; groups must be numbers or strings"),
        (LABELS * 0, "x.toml: data.groups: 'site' has only one group; a split needs at least two"),
    ],
    ids=["length", "NaN", "complex", "one"],
)
def test_the_error_for_invalid_groups_names_them(site: np.ndarray, said: str, tmp_path: Path) -> None:
    write_npz(tmp_path, site=site)
    assert said in refusal(user_study("npz:images.npz", tmp_path, groups="site"))
    with pytest.raises(DataError, match="the group of example 1 has type NoneType, not string"):
        encode_groups(np.array(["a", None], object), "g", 2)


def test_sealed_arrays_are_no_groups_and_other_data_have_none(tmp_path: Path) -> None:
    write_npz(tmp_path, x_test=BYTES, y_test=LABELS)
    assert "y_test belongs to the sealed test set and cannot be data.groups" in refusal(
        user_study("npz:images.npz", tmp_path, groups="y_test")
    )
    write_folder(tmp_path / "pictures")
    for name in ("folder:pictures", "digits"):
        said = refusal(user_study(name, tmp_path, groups="site"))
        assert said == f"{name}: has no groups; data.groups needs table:FILE, npz:FILE or FILE.py:FUNCTION (got 'site')"
