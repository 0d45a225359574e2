"""Conditional parameters in a study file: `[SECTION.when.KEY.VALUE]`."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import StudyFileError
from hpo.studyfile import Study, differing_keys, parse_study, read_study
from hpo.studyfile.writing import key_text, study_text

TEXT = """
name = "cases"

[data]
dataset = "digits"

[network]
kind = { choices = ["mlp", "cnn"] }
dropout = { low = 0.0, high = 0.4 }

[network.when.kind.cnn]
conv = { choices = [[4], [4, 4]] }
kernel = 3

[optimizer]
kind = { choices = ["momentum", "adam", "sgd"] }
lr = { low = 1e-3, high = 1.0, log = true }

[optimizer.when.kind.adam]
lr = { low = 1e-4, high = 1e-1, log = true }
beta1 = { low = 0.8, high = 0.95 }

[training]
epochs = 2

[search]
trials = 6
"""


def study_of(more: str = "", text: str = TEXT) -> Study:
    return parse_study(tomllib.loads(text + more), "cases.toml")


def refusal(more: str = "", text: str = TEXT) -> str:
    with pytest.raises(StudyFileError) as caught:
        study_of(more, text)
    return str(caught.value).removeprefix("cases.toml: ")


def test_conditional_parameters_come_last_with_their_conditions() -> None:
    words = {each.name: each.when and each.when.text() for each in study_of().parameters}
    assert words == {
        "network.kind": None,
        "dropout": None,
        "optimizer.kind": None,
        "lr": 'optimizer.kind is not "adam"',
        "conv": 'network.kind is "cnn"',
        "lr.adam": 'optimizer.kind is "adam"',
        "beta1": 'optimizer.kind is "adam"',
    }


def test_a_trial_has_the_parameters_and_values_of_its_choices() -> None:
    study = study_of()
    adam = {"network.kind": "mlp", "dropout": 0.1, "optimizer.kind": "adam", "lr.adam": 0.01, "beta1": 0.85}
    config = study.config(adam)
    assert (config.optimizer.lr, config.optimizer.beta1, config.network.kernel) == (0.01, 0.85, 5)
    sgd = {"network.kind": "cnn", "conv": [4, 4], "dropout": 0.1, "optimizer.kind": "sgd", "lr": 0.5}
    config = study.config(sgd)
    assert (config.optimizer.lr, config.optimizer.beta1, config.network.kernel) == (0.5, 0.9, 3)
    assert config.network.conv == [4, 4]
    with pytest.raises(StudyFileError, match=r"optimizer\.when\.kind\.adam\.beta1: the trial has no value"):
        study.config({name: value for name, value in adam.items() if name != "beta1"})
    with pytest.raises(StudyFileError, match=r"optimizer\.lr: the trial has a value, but it is not searched there"):
        study.config({**adam, "lr": 0.5})


def test_conditions_on_lists_and_booleans() -> None:
    text = TEXT.replace(
        "dropout = {", "hidden = { choices = [[8], [8, 8]] }\nbatch_norm = { choices = [true, false] }\n#"
    )
    more = """
[network.when.hidden."[8]"]
dropout = [0.1, { low = 0.0, high = 0.4 }]
[network.when.hidden."[8, 8]"]
dropout = [0.1, { low = 0.0, high = 0.4 }, 0.2]
[network.when.batch_norm.true]
activation = "tanh"
"""
    study = study_of(more, text.replace('["mlp", "cnn"]', '["cnn"]'))
    names = [parameter.name for parameter in study.parameters]
    assert [name for name in names if "dropout" in name] == ["dropout.1.[8]", "dropout.1.[8, 8]"]
    values = {"network.kind": "cnn", "conv": [4], "optimizer.kind": "sgd", "lr": 0.5, "batch_norm": True}
    network = study.config({**values, "hidden": [8, 8], "dropout.1.[8, 8]": 0.3}).network
    assert (network.dropout, network.activation) == ([0.1, 0.3, 0.2], "tanh")
    network = study.config({**values, "hidden": [8], "batch_norm": False, "dropout.1.[8]": 0.3}).network
    assert (network.dropout, network.activation) == ([0.1, 0.3], "relu")
    # As a choice is stored.
    applying = [parameter.name for parameter in study.applicable_parameters({**values, "hidden": "[8, 8]"})]
    assert "dropout.1.[8, 8]" in applying
    assert "dropout.1.[8]" not in applying


NUMBERS = """
[network]
kind = "mlp"
dropout = { choices = [0, [0, 0.5]] }
[network.when.dropout.0]
hidden = [4, { low = 4, high = 8 }]
[network.when.dropout."[0,0.5]"]
hidden = [4, { low = 4, high = 16 }]
"""


def test_the_key_of_a_choice_is_compared_by_value() -> None:
    tree = tomllib.loads(TEXT) | tomllib.loads(NUMBERS)
    study = parse_study(tree, "")
    assert [each.name for each in study.parameters if "hidden" in each.name] == ["hidden.1.0.0", "hidden.1.[0.0, 0.5]"]
    assert parse_study(study.resolved(), "") == study
    assert parse_study(tomllib.loads(study_text(study)), "") == study
    assert differing_keys(study, parse_study(study.resolved(), "")) == []
    stored = {"dropout": "[0.0, 0.5]", "optimizer.kind": "sgd", "lr": 0.1, "hidden.1.[0.0, 0.5]": 9}
    assert {each.name for each in study.applicable_parameters(stored)} == stored.keys()
    assert key_text((*study.conditional_tables[0].path, "hidden")) == "network.when.dropout.0.hidden"
    tree["network"]["when"]["dropout"]["0.0"] = {}
    with pytest.raises(StudyFileError, match=r"^cases: network\.when\.dropout\.'0\.0': is the same choice as 0$"):
        parse_study(tree, "cases")


def test_a_key_with_a_value_for_every_choice_is_not_required() -> None:
    text = TEXT.replace("lr = { low = 1e-3, high = 1.0, log = true }", "")
    more = "[optimizer.when.kind.sgd]\nlr = 0.1\n[optimizer.when.kind.momentum]\nlr = 0.2\n"
    study = study_of(more, text)
    assert "lr" in [parameter.name for parameter in study.parameters]  # searched in one place: the key's own name
    assert study.config({"network.kind": "mlp", "dropout": 0.0, "optimizer.kind": "momentum"}).optimizer.lr == 0.2
    assert parse_study(study.resolved(), "") == study
    assert refusal("[optimizer.when.kind.momentum]\nlr = 0.1\n", text) == "optimizer.kind.choices.2: needs optimizer.lr"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            "[network.when.kind.rnn]\nkernel = 3",
            "network.when.kind.rnn: is not a choice of network.kind (did you mean 'cnn'?)",
        ),
        (
            "[optimizer.when.schedule.step]\nlr = 1.0",
            "optimizer.when.schedule: nothing can depend on optimizer.schedule: "
            "it is not searched as { choices = [...] }",
        ),
        ("[network.when.kinds.a]\nkernel = 3", "network.when.kinds: unknown key (did you mean 'kind'?)"),
        ("[network.when.kind]\nmlp = 3", "network.when.kind.mlp: must be a table (got 3)"),
        (
            "[network.when.kind.mlp]\nkernel = 3",
            'network.when.kind.mlp.kernel: not used when kind = "mlp", only with "cnn"',
        ),
        (
            "[optimizer.when.kind.momentum]\nlrr = 1",
            "optimizer.when.kind.momentum.lrr: unknown key (did you mean 'lr'?)",
        ),
        ("[optimizer.when.kind.momentum]\nlr = -0.1", "optimizer.when.kind.momentum.lr: must be above 0 (got -0.1)"),
        (
            "[optimizer.when.kind.sgd]\nlr = { low = -1, high = 1 }",
            "optimizer.when.kind.sgd.lr.low: must be above 0 (got -1)",
        ),
        ("[optimizer.when.kind.sgd]\nlr = { low = 1 }", "optimizer.when.kind.sgd.lr.high: missing"),
        (
            '[optimizer.when.kind.sgd]\nkind = "adam"',
            "optimizer.when.kind.sgd.kind: cannot depend on kind, because other keys depend on kind",
        ),
        (
            "[optimizer.when.kind.sgd]\nlr = 0.1\n[optimizer.when.kind.momentum]\nlr = 0.2",
            "optimizer.lr: is never used: every choice of optimizer.kind has its own lr",
        ),
        ("[baseline]\nbeta1 = 0.9", 'baseline.beta1: is searched only where optimizer.kind is "adam"'),
        ('[baseline]\n"optimizer.kind" = "adam"\nbeta1 = 1.5', "baseline.beta1: must be below 1 (got 1.5)"),
        (
            '[[search.points]]\n"optimizer.kind" = "adam"\n"network.kind" = "mlp"\ndropout = 0.1\n"lr.adam" = 0.01',
            "search.points.0: has no value for the searched parameter beta1",
        ),
        (
            "[training.when.epochs.2]\nbatch_size = 3",
            "training.when.epochs: nothing can depend on training.epochs: it is not searched as { choices = [...] }",
        ),
    ],
)
def test_errors_in_conditional_tables(more: str, problem: str) -> None:
    assert refusal(more) == problem


def test_a_key_depends_on_one_other_key_only() -> None:
    text = TEXT.replace("lr = { low = 1e-3", 'schedule = { choices = ["constant", "step"] }\nlr = { low = 1e-3')
    message = refusal("[optimizer.when.schedule.step]\nbeta1 = 0.7\n", text)
    assert message == "optimizer.when.kind.adam.beta1: cannot depend on kind, because it depends on schedule already"


def test_an_override_changes_a_conditional_table(tmp_path: Any) -> None:
    path = tmp_path / "cases.toml"
    path.write_text(TEXT)
    study = read_study(path, ["optimizer.when.kind.adam.lr.high=0.2", "optimizer.when.kind.sgd.clip=1.0"])
    assert differing_keys(study_of(), study) == [
        "optimizer.when.kind.adam.lr.high: 0.1 -> 0.2",
        "optimizer.when.kind.sgd: not set -> { clip = 1.0 }",
    ]
    with pytest.raises(StudyFileError, match=r"lr\.high: must be a number"):
        read_study(path, ["optimizer.when.kind.adam.lr.high=word"])
    text = TEXT.replace('kind = { choices = ["mlp", "cnn"] }', 'kind = "mlp"\nhidden = { choices = [[8], [8, 8]] }')
    path.write_text(text[: text.index("[network.when")] + text[text.index("[optimizer]") :])
    for quoted in ("[8, 8]", '"[8, 8]"', "'[8, 8]'"):
        changed = read_study(path, [f"network.when.hidden.{quoted}.dropout=[0.1, 0.2]"])
        assert differing_keys(read_study(path), changed) == [
            "network.when: not set -> { hidden = { '[8, 8]' = { dropout = ... } } }"
        ]


KINDS = {"sgd": ["lr", "clip", "warmup"], "momentum": ["lr", "momentum"], "adam": ["lr", "beta1", "beta2", "eps"]}
VALUES = st.one_of(
    st.floats(0.1, 0.9),
    st.just({"low": 0.1, "high": 0.9}),
    st.just({"low": 0.1, "high": 0.9, "step": 0.2}),
    st.just({"choices": [0.3, 0.6]}),
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Trees with conditional tables for kinds of the optimizer."""
    kinds = draw(st.permutations(sorted(KINDS)))[: draw(st.integers(1, 3))]
    cases = {
        kind: {key: draw(VALUES) for key in draw(st.lists(st.sampled_from(KINDS[kind]), unique=True))}
        for kind in draw(st.sets(st.sampled_from(kinds)))
    }
    own = [
        key for key in ("lr", "weight_decay") if key != "lr" or not all("lr" in cases.get(kind, {}) for kind in kinds)
    ]
    tree = tomllib.loads(TEXT)
    tree["optimizer"] = {"kind": {"choices": kinds}, **{key: draw(VALUES) for key in own}, "when": {"kind": cases}}
    return tree


@given(trees(), st.data())
def test_a_study_with_conditions_is_read_back_and_configures_its_trials(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    study = parse_study(tree, "")
    assert parse_study(study.resolved(), "") == study
    assert parse_study(tomllib.loads(study_text(study)), "") == study
    kind = data.draw(st.sampled_from(tree["optimizer"]["kind"]["choices"]))
    values: dict[str, Any] = {"optimizer.kind": kind, "network.kind": "mlp"}
    for parameter in study.applicable_parameters(values):
        values.setdefault(parameter.name, 0.3)
    found = study.config(values).optimizer
    case = tree["optimizer"]["when"]["kind"].get(kind, {})
    for key in KINDS[kind]:
        said = case.get(key, tree["optimizer"].get(key))
        if said is not None:
            assert getattr(found, key) == (0.3 if isinstance(said, dict) else said)
            assert study.value(("optimizer", key), values) == getattr(found, key)
