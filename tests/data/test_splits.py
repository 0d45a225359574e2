from __future__ import annotations

import json
from pathlib import Path

import forks
import numpy as np
import pytest
from data_files import TEST, TRAIN, idx_labels, some_images, study_of, write_cifar, write_idx
from hypothesis import given
from hypothesis import strategies as st

from hpo.data import Examples, SealedExamples, check_test, load_split, load_test
from hpo.data.splits import split_indices
from hpo.errors import DataError, StudyFileError, UsageError


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    return write_idx(tmp_path / "mnist", 200)


def sealed(name: str) -> SealedExamples:
    return load_test(load_split(study_of(name)))


def rows(images: Examples) -> set[bytes]:
    return {image.tobytes() for image in images.inputs}


def test_pixels_are_scaled_and_keep_their_labels(mnist: Path) -> None:
    split = load_split(study_of("mnist"))
    assert (split.dataset, split.classes, split.test_size) == ("mnist", 10, 20)
    assert split.train.inputs.shape == (160, 1, 28, 28)
    assert split.validation.inputs.shape == (40, 1, 28, 28)
    pixels, labels = some_images(200)
    known = {image.astype(np.float32).tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    for part in (split.train, split.validation):
        assert part.inputs.dtype == np.float32
        assert part.targets.dtype == np.int64
        assert part.inputs.min() == 0
        assert part.inputs.max() == 1
        for image, label in zip(part.inputs, part.targets, strict=True):
            assert known[np.rint(image * 255).tobytes()] == label


def test_validation_and_training_are_disjoint_and_complete(mnist: Path) -> None:
    split = load_split(study_of("mnist"))
    assert not rows(split.train) & rows(split.validation)
    assert len(rows(split.train) | rows(split.validation)) == 200


def test_equal_studies_have_equal_splits_and_other_seeds_others(mnist: Path) -> None:
    first, again, other = (load_split(study_of("mnist", split_seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert first.split_sha256 == again.split_sha256 != other.split_sha256
    assert first.content_sha256 == again.content_sha256 == other.content_sha256


def test_train_size_takes_the_first_after_the_shuffle(mnist: Path) -> None:
    whole = load_split(study_of("mnist"))
    part = load_split(study_of("mnist", train_size=100))
    assert (len(part.train), len(part.validation)) == (80, 20)
    np.testing.assert_array_equal(part.validation.inputs, whole.validation.inputs[:20])
    assert part.content_sha256 == whole.content_sha256
    assert part.split_sha256 != whole.split_sha256


def test_splits_do_not_change_between_versions(mnist: Path) -> None:
    """Studies store this hash: if NumPy's shuffle changes, this test fails before a user's study does."""
    split = load_split(study_of("mnist"))
    assert split.split_sha256 == "40f3c67f0e8a72b93ee6061dfc409d542753ca090f25e1540e07da26be915298"
    assert (
        load_split(study_of("digits")).split_sha256
        == "3699b0e252acf3e269b6968abf21e361e2c0b13533c90a4b8fc17c37af66483f"
    )


def test_digits_come_inside_a_package_with_a_sealed_fifth() -> None:
    split = load_split(study_of("digits"))
    test = load_test(split)
    assert split.train.inputs.shape[1:] == test.inputs.shape[1:] == (1, 8, 8)
    assert len(split.train) + len(split.validation) == 1438
    assert split.test_size == len(test) == 359
    assert split.train.inputs.min() == 0
    assert split.train.inputs.max() == 1
    assert not rows(test) & (rows(split.train) | rows(split.validation))
    assert set(test.targets) == set(range(10))
    assert split.content_sha256 == "e2af9fa26dedbe00b1c88607c2403c1e36f666295207989ec05d4d9fe3123a33"


def test_cifar10_has_its_planes_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    folder = write_cifar(tmp_path / "cifar-10-batches-bin", (100,))
    record = np.frombuffer((folder / "data_batch_1.bin").read_bytes(), np.uint8)[:3073]
    split = load_split(study_of("cifar10"))
    red = record[1:1025].reshape(32, 32).astype(np.float32) / 255
    both = np.concatenate([split.train.inputs, split.validation.inputs])
    assert any(np.array_equal(image[0], red) for image in both)
    assert split.test_size == 10
    assert sealed("cifar10").inputs.shape == (10, 3, 32, 32)


def test_the_sealed_test_set_comes_from_the_folder_of_the_training_files(mnist: Path, cache: Path) -> None:
    assert sealed("mnist").inputs.shape == (20, 1, 28, 28)
    write_idx(cache / "mnist")
    (mnist / TEST[0]).unlink()
    for read in (check_test, sealed):
        with pytest.raises(DataError, match=r"mnist/t10k-images-idx3-ubyte: missing"):
            read("mnist")


def test_the_sealed_test_set_is_checked_without_opening_it(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TEST:
        (mnist / name).unlink()
        (mnist / name).write_bytes(b"sealed")
    check_test("mnist")
    check_test("digits")
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    folder = write_cifar(tmp_path / "cifar-10-batches-bin", (100,))
    check_test("cifar10")
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin: cannot be read"):
        check_test("cifar10")


def test_the_sealed_test_set_has_a_hash(mnist: Path) -> None:
    assert (load_split(study_of("mnist")).white, load_split(study_of("digits")).white) == (255, 16)
    before = sealed("mnist").content_sha256
    labels = (mnist / TEST[1]).read_bytes()
    (mnist / TEST[1]).write_bytes(labels[:-1] + bytes([(labels[-1] + 1) % 10]))
    assert sealed("mnist").content_sha256 != before


def test_the_error_for_an_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown data set 'mnits' \(did you mean 'mnist'\?\); known: digits, mnist"):
        check_test("mnits")


def test_the_error_for_missing_data_has_the_download_command() -> None:
    with pytest.raises(DataError, match="hpo data fetch mnist"):
        load_split(study_of("mnist"))


OPENED = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
sys.path.insert(0, sys.argv[2])
from data_files import study_of
from hpo.data import load_split
split = load_split(study_of(sys.argv[1]))
print(json.dumps({"opened": opened, "train": len(split.train), "test_size": split.test_size}))
"""


@pytest.mark.parametrize("present", [True, False], ids=["present", "absent"])
@pytest.mark.parametrize(("name", "packed"), [("mnist", False), ("mnist", True), ("cifar10", False)])
def test_test_files_are_never_opened_and_need_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packed: bool, present: bool
) -> None:
    if name == "cifar10":
        write_cifar(tmp_path / "cifar-10-batches-bin", (100,), test=10 if present else None)
        training, test, size = ["data_batch_1.bin"], ["test_batch.bin"], 10 if present else None
    else:
        write_idx(tmp_path / "mnist", 100, packed=packed, test=20 if present else None)
        training, test, size = list(TRAIN), list(TEST), 20 if present and not packed else None
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    result = forks.run([name, str(Path(__file__).parent)], script=OPENED)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert (seen["train"], seen["test_size"]) == (80, size)
    for part in training:
        assert any(part in path for path in seen["opened"])  # the hook does see what is opened
    for part in test:
        assert not any(part in path for path in seen["opened"])


def refusal(name: str, **data: float) -> str:
    with pytest.raises(StudyFileError) as caught:
        load_split(study_of(name, **data))
    return str(caught.value)


def test_an_unusable_split_is_an_error_at_its_key(mnist: Path) -> None:
    source = "studies/x.toml: data"
    assert refusal("mnist", train_size=201) == (
        f"{source}.train_size: must be at most 200, the training examples of mnist (got 201)"
    )
    assert (
        refusal("mnist", validation=0.002) == f"{source}.validation: leaves no validation examples of 200 (got 0.002)"
    )
    assert refusal("mnist", validation=0.999) == f"{source}.validation: leaves no training examples of 200 (got 0.999)"
    few = refusal("mnist", train_size=12)
    assert few.startswith(f"{source}.train_size: leaves no training example of class ")
    assert few.endswith(" (of 10 training examples)")
    assert refusal("mnist", validation=0.96).startswith(f"{source}.validation: leaves no training example of class ")


@pytest.mark.parametrize(("validation", "how_many"), [(0.02, 6), (0.12, 1), (0.2, 0)])
def test_classes_without_a_validation_example_are_named(mnist: Path, validation: float, how_many: int) -> None:
    split = load_split(study_of("mnist", validation=validation))
    absent = [f"'{label}'" for label in range(10) if label not in split.validation.targets]
    assert len(absent) == how_many
    which = (
        f"{how_many} classes ({', '.join(absent[:5])} and {how_many - 5} more)"
        if how_many > 1
        else f"class {''.join(absent)}"
    )
    said = f"mnist: no validation example of {which}; try another data.split_seed or a larger data.validation"
    assert split.warning == (said if absent else "")


def test_files_without_a_class_are_a_data_error(mnist: Path) -> None:
    (mnist / TRAIN[1]).write_bytes(idx_labels(np.arange(200, dtype=np.uint8) % 9))
    with pytest.raises(DataError, match="mnist: no training example of class 9"):
        load_split(study_of("mnist"))


@given(
    total=st.integers(1, 300),
    validation=st.floats(0.001, 0.999),
    train_size=st.none() | st.integers(2, 320),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_split_is_complete_or_refused_at_a_key_of_data(
    total: int, validation: float, train_size: int | None, seed: int
) -> None:
    size = {} if train_size is None else {"train_size": train_size}
    study = study_of("mnist", validation=validation, split_seed=seed, **size)
    labels = (np.arange(total) % 3).astype(np.uint8)
    try:
        held_out, training = split_indices(study, labels, "abc")
    except (StudyFileError, DataError) as error:
        refused = error
    else:
        refused = None
    if isinstance(refused, StudyFileError):
        assert refused.key in {"data.validation", "data.train_size"}
        return
    if isinstance(refused, DataError):
        assert total < 3
        return
    kept = train_size or total
    assert len(held_out) == round(validation * kept) > 0
    assert len(held_out) + len(training) == kept == len(set(held_out) | set(training))
    assert max(held_out.max(), training.max()) < total
    assert set(labels[training]) == {0, 1, 2}
