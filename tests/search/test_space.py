"""Search space: Optuna distributions, finite spaces, and the encoding and decoding of values."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.samplers import RandomSampler
from tiny import study_of, tree

from hpo.errors import StudyFileError
from hpo.search.space import (
    candidate,
    check_space,
    combination,
    config_of,
    contains,
    count,
    decode,
    distributions,
    identity,
    misread,
    size,
    size_text,
    snapped,
    takes,
)
from hpo.studyfile import Choices, Parameter, Study, parse_study
from hpo.studyfile.searched import encode_choice

SMALL = st.integers(1, 400)


@st.composite
def integer_ranges(draw: st.DrawFn) -> dict[str, Any]:
    low, width = draw(SMALL), draw(SMALL)
    if draw(st.booleans()):
        return {"low": low, "high": low + width, "log": True}
    step = draw(st.none() | st.integers(1, width))
    return {"low": low, "high": low + width, **({} if step is None else {"step": step})}


@st.composite
def stepped_ranges(draw: st.DrawFn) -> dict[str, Any]:
    """Draw ranges of short decimals and of any floats; the step need not divide the range."""
    if draw(st.booleans()):
        digits = draw(st.integers(1, 6))
        low, width = draw(SMALL), draw(SMALL)
        step = draw(st.integers(1, width))
        return {"low": low / 10**digits, "high": (low + width) / 10**digits, "step": step / 10**digits}
    low, high = sorted(draw(st.tuples(*[st.floats(1e-9, 1e3)] * 2)))
    assume(low < high)
    return {"low": low, "high": high, "step": draw(st.floats((high - low) / 1000, high - low, exclude_min=True))}


@st.composite
def float_ranges(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted(draw(st.tuples(*[st.floats(1e-12, 1e3)] * 2)))
    assume(low < high)
    return {"low": low, "high": high, "log": draw(st.booleans())}


def choices(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"choices": st.lists(values, min_size=1, max_size=5, unique_by=json.dumps)})


@st.composite
def studies(draw: st.DrawFn) -> Study:
    """Draw studies that search values of every type."""
    lr = stepped_ranges() | float_ranges() | choices(st.sampled_from([0.1, 0.25, 1.0, 2.0]))
    network: dict[str, Any] = {
        "hidden": draw(choices(st.lists(st.integers(1, 9), max_size=3))),
        "batch_norm": draw(choices(st.booleans())),
        "init": draw(choices(st.sampled_from(["he", "xavier", 1.0, 0.01]))),
    }
    try:
        study = study_of(
            network={key: network[key] for key in draw(st.sets(st.sampled_from(sorted(network))))},
            optimizer={"lr": draw(lr)},
            training={"batch_size": draw(integer_ranges())},
        )
    except StudyFileError as error:  # rounding made the step larger than the range
        assume(error.key != "optimizer.lr.step")
        raise
    assume(is_valid(study))
    return study


def is_valid(study: Study) -> bool:
    """Return True if a launch accepts the search space of the study."""
    try:
        check_space(study)
    except StudyFileError:
        return False
    return True


@given(studies(), st.integers(0, 2**32 - 1))
def test_sampled_values_are_in_the_space_and_survive_storage(study: Study, seed: int) -> None:
    space = distributions(study)
    sampler = RandomSampler(seed=seed)
    values = {
        parameter.name: snapped(
            parameter,
            sampler.sample_independent(None, None, parameter.name, space[parameter.name]),  # type: ignore[arg-type]
        )
        for parameter in study.parameters
    }
    assert contains(space, values)
    texts = {name: distribution_to_json(distribution) for name, distribution in space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored_space = {name: json_to_distribution(text) for name, text in texts.items()}
    stored = {
        name: stored_space[name].to_external_repr(space[name].to_internal_repr(value)) for name, value in values.items()
    }
    assert identity(stored) == identity(values)
    assert contains(stored_space, stored)
    config = config_of(study, stored)
    if "hidden" in values:
        assert config.network.hidden == json.loads(values["hidden"])
    assert config.optimizer.lr == values.get("lr", study.first_settings.optimizer.lr)


@given(studies(), st.data())
def test_candidates_are_in_the_space_and_distinct(study: Study, data: st.DataObject) -> None:
    space = distributions(study)
    for parameter in study.parameters:
        number = count(parameter)
        if number is None:
            continue
        places = sorted(data.draw(st.sets(st.integers(0, number - 1), max_size=5)) | {0, number - 1})
        values = [candidate(parameter, place) for place in places]
        assert len({identity({"": value}) for value in values}) == len(places)
        for value in values:
            assert contains({parameter.name: space[parameter.name]}, {parameter.name: value})
            assert snapped(parameter, value) == value
            assert type(snapped(parameter, value)) is type(value)
        beyond = {parameter.name: candidate(parameter, number)} if "choices" not in parameter.searched.tree() else {}
        assert not contains({parameter.name: space[parameter.name]}, beyond)


@given(choices(st.lists(st.integers(1, 9), max_size=3) | st.booleans() | st.sampled_from(["he", 1, 2.5])))
def test_a_choice_is_decoded_with_its_type(table: dict[str, Any]) -> None:
    parameter = Parameter("x", ("network", "x"), Choices(tuple(table["choices"])), integer=False)
    for choice in table["choices"]:
        decoded = decode(parameter, encode_choice(choice))
        assert decoded == choice
        assert type(decoded) is type(choice)


def test_a_stored_list_is_decoded_also_if_it_is_no_choice_now() -> None:
    study = study_of(network={"hidden": {"choices": [[8], [4, 4]]}})
    assert decode(study.parameters[0], "[16, 16]") == [16, 16]


def test_a_decoded_list_is_a_copy() -> None:
    study = study_of(network={"hidden": {"choices": [[8], [4, 4]]}})
    decode(study.parameters[0], "[8]").append(9)
    config_of(study, {"hidden": "[8]", "lr": 0.1}).network.hidden.append(9)
    assert config_of(study, {"hidden": "[8]", "lr": 0.1}).network.hidden == [8]


def study_of_choices(*given: Any) -> Study:
    network = {"module": "net.py:Net", "args": {"a": {"choices": list(given)}}}
    return parse_study({**tree(), "network": network}, "tiny.toml")


@pytest.mark.parametrize("text", ["[CLS]", "[8,16]", "[" * 100_000])
def test_a_string_that_is_no_encoded_list_stays_a_string(text: str) -> None:
    assert decode(study_of_choices(1).parameters[0], text) == text


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([True, 2], [1, 2], None),
        ([[8], [4]], [[4]], None),
        (["[8,16]", "x"], ["x"], None),
        (["[8]", "x"], [[8]], "network.args.a: the choice '[8]' of trials would be taken for [8]"),
        (["[8]", "x"], ["x"], "network.args.a: the choice '[8]' of trials would be taken for [8]"),
        ([[8]], ["[8]"], "network.args.a: the choice [8] of trials would be taken for '[8]'"),
    ],
)
def test_choices_that_another_study_would_misread_are_reported(
    before: list[Any], after: list[Any], message: str | None
) -> None:
    assert misread(study_of_choices(*before), study_of_choices(*after)) == message


@pytest.mark.parametrize(
    ("searched", "accepted", "refused"),
    [
        ({"choices": [True, 0, 2.0]}, [True, 0, 2.0], [1, 1.0, False, 0.0, 2]),
        ({"choices": [[8], "[16]"]}, [[8], "[16]"], ["[8]", [16], [8.0], [True]]),
        ({"low": 1, "high": 9}, [1, 9, 8.0], [0, 8.5, True, "1", [1], None, 10**400]),
        ({"low": 0.0, "high": 9.0}, [1, 0.5], [True, -1, "1", math.nan]),
    ],
)
def test_equal_values_of_another_type_are_not_accepted(
    searched: dict[str, Any], accepted: list[Any], refused: list[Any]
) -> None:
    network = {"module": "net.py:Net", "args": {"a": searched}}
    (parameter, _) = parse_study({**tree(), "network": network}, "tiny.toml").parameters
    assert [value for value in accepted if not takes(parameter, value)] == []
    assert [value for value in refused if takes(parameter, value)] == []


def test_combinations_are_in_order_with_the_last_parameter_fastest() -> None:
    study = study_of(
        network={"hidden": {"choices": [[8], []]}, "dropout": {"low": 0.1, "high": 0.35, "step": 0.1}},
        optimizer={"lr": 0.1},
        training={"batch_size": {"low": 10, "high": 25, "step": 10}},
    )
    combinations = [combination(study, index) for index in range(int(size(study)))]
    assert [tuple(values.values()) for values in combinations] == [
        (hidden, dropout, batch) for hidden in ("[8]", "[]") for dropout in (0.1, 0.2, 0.3) for batch in (10, 20)
    ]
    assert [list(values) for values in combinations[:1]] == [["hidden", "dropout", "batch_size"]]


def test_a_study_without_searched_parameters_has_one_trial() -> None:
    study = study_of(optimizer={"lr": 0.1})
    assert size(study) == 1
    assert combination(study, 0) == {}
    assert size_text(study) == "1 different trial"


def test_vast_spaces_are_counted_fast() -> None:
    study = study_of(
        network={"hidden": [{"low": 1, "high": 2**53}] * 25}, training={"batch_size": {"low": 1, "high": 10**9}}
    )
    assert size(study) == float("inf")
    study = study_of(
        network={"hidden": [{"low": 1, "high": 2**53}] * 25}, optimizer={"lr": {"low": 1.0, "high": 9.0, "step": 1e-6}}
    )
    assert size(study) == 2 ** (53 * 25) * 8_000_001
    assert combination(study, int(size(study)) - 1)["lr"] == 9.0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimizer": {"lr": {"low": 1e-3, "high": 1.0, "step": 1e-300}}}, "optimizer.lr.step"),
        ({"optimizer": {"lr": {"low": 999.0, "high": 1000.0, "step": 1e-7}}}, "optimizer.lr.step"),
        ({"optimizer": {"lr": {"low": 1e-20, "high": 1.0, "step": 0.5}}}, "optimizer.lr.step"),
        ({"training": {"batch_size": {"low": 1, "high": 2**53 + 1}}}, "training.batch_size.high"),
    ],
)
def test_a_range_that_optuna_cannot_store_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        check_space(study_of(**changes))
    assert caught.value.key == key


def test_contains_compares_types_and_needs_every_parameter() -> None:
    space = distributions(study_of(network={"batch_norm": {"choices": [True, False]}}))
    assert contains(space, {"lr": 0.1, "batch_norm": True})
    assert not contains(space, {"lr": 0.1, "batch_norm": 1})
    assert not contains(space, {"lr": 0.1})
    assert not contains(space, {"lr": 2.0, "batch_norm": True})
    assert not contains(space, {"lr": "0.1", "batch_norm": True})
    assert not contains(space, {"lr": 0.1, "batch_norm": True, "momentum": 0.9})
