from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
from data_files import TEST, TRAIN, idx_labels, some_images, study_of, write_cifar, write_idx
from hypothesis import given
from hypothesis import strategies as st
from sklearn import model_selection as sklearn

from hpo.data import Examples, SealedExamples, check_test, load_split, load_test
from hpo.data.examples import hash_split
from hpo.data.known.catalogue import CATALOGUE, known_dataset
from hpo.data.row_splits import fold_indices, hold_out
from hpo.errors import DataError, HpoError, SettingError, StudyFileError, UsageError
from hpo.studyfile import parse_study
from hpo.studyfile.data_settings import DataSettings


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    return write_idx(tmp_path / "mnist", 200)


def data(**keys: Any) -> DataSettings:
    return study_of("mnist", **keys).data


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
    whole = load_split(study_of("mnist", stratify=False))
    part = load_split(study_of("mnist", train_size=100, stratify=False))
    assert (len(part.train), len(part.validation)) == (80, 20)
    np.testing.assert_array_equal(part.validation.inputs, whole.validation.inputs[:20])
    assert part.content_sha256 == whole.content_sha256
    assert part.split_sha256 != whole.split_sha256


def test_splits_do_not_change_between_versions(mnist: Path) -> None:
    """Studies store this hash: if a shuffle changes, this test fails before a user's study does."""
    split = load_split(study_of("mnist", stratify=False))
    assert split.split_sha256 == "40f3c67f0e8a72b93ee6061dfc409d542753ca090f25e1540e07da26be915298"
    assert (
        load_split(study_of("digits", stratify=False)).split_sha256
        == "3699b0e252acf3e269b6968abf21e361e2c0b13533c90a4b8fc17c37af66483f"
    )
    assert split.method == "random, seed 0"


def test_the_indices_of_scikit_learn_do_not_change_between_versions() -> None:
    """Studies store this hash: if scikit-learn's splitters change, this test fails before a user's study does."""
    hashes = {
        "{}": "92859f4856cf293b83b08ee5d8b6016e895bfd24757f1c00d548cb9dd6754ec0",
        '{"groups": "g"}': "eab398668f58fa734a15febf444fe0550089b3b4168d582907d6b24eb1c8f011",
        '{"groups": "g", "stratify": false}': "0386c22e9c2c735cd1283b76ab7295d3ec44d852d0e017ef21f2b1cf184d1945",
        '{"split_seed": 1099511627776}': "028c93afcf3644091429431b1b5f67c6b5c50585fa217f711d11a8119cb231ad",
        '{"train_size": 50}': "7d86adfaa1535ff4929fe99253908bd68a46257fc3810e9ab986a8bf62e41298",
    }
    rows = np.arange(120)
    for keys, known in hashes.items():
        settings = data(**json.loads(keys))
        split = hold_out(settings, rows % 3, "abc", rows // 4 if settings.groups else None)
        assert hash_split(split.validation, split.training) == known, keys
    digits = load_split(study_of("digits"))
    assert digits.split_sha256 == "2bd59c3981bb368cfea84baa0274df2754b439723a31e377f3d61eb221f045e3"
    assert digits.method == "stratified by class, seed 0"


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
    for read in (check_test, lambda study: load_test(load_split(study))):
        with pytest.raises(DataError, match=r"mnist/t10k-images-idx3-ubyte: missing"):
            read(study_of("mnist"))


def test_the_sealed_test_set_is_checked_without_opening_it(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TEST:
        (mnist / name).unlink()
        (mnist / name).write_bytes(b"sealed")
    check_test(study_of("mnist"))
    check_test(study_of("digits"))
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    folder = write_cifar(tmp_path / "cifar-10-batches-bin", (100,))
    check_test(study_of("cifar10"))
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin: cannot be read"):
        check_test(study_of("cifar10"))


def test_the_sealed_test_set_has_a_hash(mnist: Path) -> None:
    assert (load_split(study_of("mnist")).white, load_split(study_of("digits")).white) == (255, 16)
    before = sealed("mnist").content_sha256
    labels = (mnist / TEST[1]).read_bytes()
    (mnist / TEST[1]).write_bytes(labels[:-1] + bytes([(labels[-1] + 1) % 10]))
    assert sealed("mnist").content_sha256 != before


def test_the_error_for_an_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown data set 'mnits' \(did you mean 'mnist'\?\); known: digits, mnist"):
        known_dataset("mnits", CATALOGUE)


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
    split = load_split(study_of("mnist", validation=validation, stratify=False))
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
    stratify=st.sampled_from(["auto", True, False]),
)
def test_every_split_is_complete_or_refused_at_a_key_of_data(
    total: int, validation: float, train_size: int | None, seed: int, stratify: bool | str
) -> None:
    size = {} if train_size is None else {"train_size": train_size}
    study = study_of("mnist", validation=validation, split_seed=seed, stratify=stratify, **size)
    labels = (np.arange(total) % 3).astype(np.uint8)
    refused: HpoError | None = None
    try:
        found = hold_out(study.data, labels, "abc")
    except HpoError as error:
        refused = error
    if isinstance(refused, SettingError):
        assert refused.key in {"data.validation", "data.train_size", "data.stratify"}
        assert refused.key != "data.stratify" or stratify is True
        return
    if isinstance(refused, DataError):
        assert total < 3
        return
    kept, held_out, training = train_size or total, found.validation, found.training
    assert len(held_out) == round(validation * kept) > 0
    assert len(held_out) + len(training) == kept == len(set(held_out) | set(training))
    assert max(held_out.max(), training.max()) < total
    assert set(labels[training]) == {0, 1, 2}


ROWS = np.arange(120)
LABELS = np.random.default_rng(0).choice(3, 120, p=[0.6, 0.3, 0.1])
SITES = np.random.default_rng(1).integers(0, 15, 120)


def test_a_stratified_split_is_that_of_scikit_learn() -> None:
    split = hold_out(data(split_seed=3, validation=0.25), LABELS, "abc")
    ours = sklearn.StratifiedShuffleSplit(1, test_size=0.25, random_state=3)
    training, validation = next(ours.split(ROWS, LABELS))
    np.testing.assert_array_equal(split.training, training)
    np.testing.assert_array_equal(split.validation, validation)
    assert split.method == "stratified by class, seed 3"


@given(
    labels=st.lists(st.integers(0, 4), min_size=10, max_size=200),
    validation=st.floats(0.05, 0.95),
    train_size=st.none() | st.integers(10, 200),
    seed=st.integers(0, 2**40),
)
def test_a_stratified_split_has_the_share_of_each_class_within_one_row(
    labels: list[int], validation: float, train_size: int | None, seed: int
) -> None:
    targets = np.array(labels)
    size = min(train_size or len(labels), len(labels))
    settings = data(stratify=True, validation=validation, split_seed=seed, train_size=size)
    try:
        split = hold_out(settings, targets)
    except SettingError:
        counts = np.bincount(targets)
        smaller = min(round(validation * size), size - round(validation * size))
        # A class is too small, here or among the rows that train_size leaves, or there are more classes than rows.
        assert counts[counts > 0].min() * size < 3 * len(labels) or smaller < np.count_nonzero(counts)
        return
    used = np.concatenate([split.validation, split.training])
    assert len(used) == size == len(set(used))
    for rows, whole in ((split.validation, used), (split.training, used)):
        exact = np.bincount(targets[whole], minlength=5) * len(rows) / len(whole)
        assert np.abs(np.bincount(targets[rows], minlength=5) - exact).max() < 1
    exact = np.bincount(targets, minlength=5) * size / len(labels)
    assert np.abs(np.bincount(targets[used], minlength=5) - exact).max() < 2


def test_classes_that_cannot_be_stratified_are_an_error_where_that_is_asked_for_and_else_a_note() -> None:
    rare = np.array([0] * 60 + [1] * 59 + [2])
    assert (
        refused(rare, stratify=True)
        == "data.stratify: class 'c' has 1 of the 2 examples that it needs; use stratify = false (got true)"
    )
    few = "4 examples on one side are fewer than the 10 classes"
    assert few in refused(ROWS % 10, "0123456789", stratify=True, validation=4 / 120)
    assert refused(LABELS / 2, stratify=True) == "data.stratify: must be false: the targets are not classes (got true)"
    assert hold_out(data(validation=4 / 120), ROWS % 10).method == f"random, seed 0; not stratified: {few}"
    unsplit = hold_out(data(stratify=False, split_seed=1), rare)
    np.testing.assert_array_equal(hold_out(data(split_seed=1), rare).training, unsplit.training)
    assert hold_out(data(), LABELS / 2, ()).method == "random, seed 0"


def refused(targets: np.ndarray, names: str = "abc", groups: np.ndarray | None = None, **keys: Any) -> str:
    with pytest.raises(SettingError) as caught:
        hold_out(data(**keys), targets, names, groups)
    return str(caught.value)


def test_a_split_by_group_is_that_of_scikit_learn() -> None:
    settings = data(groups="site", split_seed=3, stratify=False)
    split = hold_out(settings, LABELS, "abc", SITES)
    training, validation = next(sklearn.GroupShuffleSplit(1, test_size=0.2, random_state=3).split(ROWS, groups=SITES))
    np.testing.assert_array_equal(split.training, training)
    np.testing.assert_array_equal(split.validation, validation)
    assert split.method == "by group (site), 12 groups for training and 3 for validation, seed 3"
    split = hold_out(data(groups="site", split_seed=3, validation=0.3), LABELS, "abc", SITES)
    folds = list(sklearn.StratifiedGroupKFold(10, shuffle=True, random_state=3).split(ROWS, LABELS, SITES))
    np.testing.assert_array_equal(split.validation, np.sort(np.concatenate([folds[i][1] for i in range(3)])))
    assert split.method.endswith("for validation, stratified by class, seed 3")


@given(
    groups=st.lists(st.integers(0, 12), min_size=4, max_size=80),
    stratify=st.sampled_from(["auto", True, False]),
    validation=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**40),
    fewer=st.booleans(),
)
def test_no_group_is_on_both_sides(
    groups: list[int], stratify: bool | str, validation: float, seed: int, fewer: bool
) -> None:
    known, size = np.array(groups), len(groups) - 2 * fewer
    settings = data(groups="g", stratify=stratify, validation=validation, split_seed=seed, train_size=size)
    targets = np.arange(len(groups)) % 2
    try:
        split = hold_out(settings, targets, (), known)
    except SettingError as error:
        refused_at = error.key
    else:
        refused_at = ""
    if refused_at:
        assert refused_at in {"data.groups", "data.validation", "data.stratify"}
        return
    assert not set(known[split.validation]) & set(known[split.training])
    assert len(split.validation) + len(split.training) == size
    assert len(split.validation)
    assert len(split.training)


def test_too_few_groups_are_an_error() -> None:
    for stratify in ("auto", False):
        with pytest.raises(SettingError) as caught:
            hold_out(data(groups="site", stratify=stratify), LABELS, "abc", ROWS * 0)
        assert str(caught.value) == "data.groups: 'site' has only one group; a split needs at least two"


def test_rows_in_time_order_are_not_shuffled() -> None:
    training, validation = sklearn.train_test_split(ROWS, test_size=0.2, shuffle=False)
    split = hold_out(data(order="time"), LABELS, "abc")
    np.testing.assert_array_equal(split.training, training)
    np.testing.assert_array_equal(split.validation, validation)
    assert split.method == "in time order, the last rows for validation"
    latest = hold_out(data(order="time", train_size=50), LABELS, "abc")
    np.testing.assert_array_equal(np.concatenate([latest.training, latest.validation]), ROWS[-50:])
    late = np.where(ROWS < 100, 0, 1)
    assert refused(late, "ab", order="time") == (
        "data.order: leaves no training example of class b (of 96 training examples)"
    )
    assert refused(LABELS[:2], order="time") == "data.validation: leaves no validation examples of 2 (got 0.2)"


@pytest.mark.parametrize(
    ("keys", "splitter"),
    [
        ({"stratify": False}, sklearn.KFold(4, shuffle=True, random_state=3)),
        ({}, sklearn.StratifiedKFold(4, shuffle=True, random_state=3)),
        ({"groups": "site", "stratify": False}, sklearn.GroupKFold(4, shuffle=True, random_state=3)),
        ({"groups": "site"}, sklearn.StratifiedGroupKFold(4, shuffle=True, random_state=3)),
        ({"order": "time"}, sklearn.TimeSeriesSplit(4)),
    ],
    ids=["random", "stratified", "groups", "stratified groups", "time"],
)
def test_folds_are_those_of_scikit_learn(keys: dict[str, Any], splitter: Any) -> None:
    groups = SITES if "groups" in keys else None
    folds = fold_indices(data(split_seed=3, **keys), 4, LABELS, groups, "abc")
    assert len(folds) == 4
    for (validation, training), (train, test) in zip(folds, splitter.split(ROWS, LABELS, groups), strict=True):
        np.testing.assert_array_equal(training, train)
        np.testing.assert_array_equal(validation, test)
        assert groups is None or not set(groups[training]) & set(groups[validation])
        assert "order" not in keys or training.max() < validation.min()
    fewer = fold_indices(data(train_size=90, split_seed=3, **keys), 4, LABELS, groups, "abc")
    used = set[int]().union(*map(set, fewer[-1]))
    assert len(used) == 90
    assert "order" not in keys or used == set(ROWS[-90:])
    if "order" not in keys:
        assert sorted(np.concatenate([validation for validation, _ in fewer])) == sorted(used)


@pytest.mark.parametrize(
    ("rows", "folds", "keys", "said"),
    [
        (120, 3, {"stratify": True}, "data.stratify: class 'c' has 2 of the 3 examples that it needs; use stratify ="),
        (
            120,
            4,
            {"groups": "site", "stratify": False},
            "data.groups: 'site' has 3 groups, fewer than 4 folds; use fewer folds",
        ),
        (
            120,
            3,
            {},
            "data.folds: class 'c' has 2 of the 3 examples that it needs, one in each fold; use fewer folds, or "
            "data.stratify = false (got 3)",
        ),
        (4, 4, {"order": "time"}, "data.order: needs 5 rows or more for 4 folds (got 4 rows); use fewer folds"),
        (4, 5, {"stratify": False}, "data.folds: must be at most 4, the number of examples (got 5)"),
    ],
)
def test_the_error_for_folds_that_cannot_be_made(rows: int, folds: int, keys: dict[str, Any], said: str) -> None:
    labels = np.where(ROWS < 118, ROWS % 2, 2)[-rows:]
    with pytest.raises(SettingError) as caught:
        fold_indices(data(**keys), folds, labels, ROWS[-rows:] % 3 if "groups" in keys else None, "abc")
    assert str(caught.value).startswith(said)


def test_a_file_that_was_resolved_before_the_key_stratify_keeps_its_split() -> None:
    fresh = study_of("digits")
    resolved = fresh.resolved()
    assert resolved["data"]["stratify"] == resolved["data"]["validation"] == "auto"
    assert parse_study(resolved, "resolved.json") == fresh
    old = {key: value for key, value in resolved["data"].items() if key != "stratify"} | {"validation": 0.2}
    study = parse_study({**resolved, "data": old}, "resolved.json")
    assert study.data.stratify is False
    assert load_split(study).split_sha256 == load_split(study_of("digits", stratify=False)).split_sha256


def test_the_sealed_rows_of_a_known_regression_are_found_and_read() -> None:
    study = parse_study(
        {
            "name": "s",
            "data": {"dataset": "diabetes"},
            "task": {"kind": "regression"},
            "network": {"kind": "mlp"},
            "optimizer": {"lr": 0.1},
            "training": {"epochs": 1},
            "search": {"trials": 1, "metric": "val_rmse"},
        },
        "x.toml",
    )
    check_test(study)
    assert load_test(load_split(study)).targets.shape == (88, 1)
