"""The public names of hpo: documented, typed, with docstrings, and imported on first use only."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import hpo
from hpo import errors

ROOT = Path(__file__).parent.parent
NAMES = [name for name in hpo.__all__ if name != "__version__"]
HEAVY = {"torch", "optuna", "numpy", "scipy", "sqlalchemy", "sklearn", "plotly", "rich", "IPython"}
SCRIPT = '''\
"""A user's program, checked by mypy only."""

import numpy as np
from numpy.typing import NDArray

import hpo

study = hpo.Study(
    name="typed",
    data=hpo.Data(dataset="digits", train_size=200),
    network=hpo.Network(kind=hpo.Choices(["mlp"]), hidden=[hpo.Range(8, 16), 8], dropout=[0.0, hpo.Range(0.0, 0.5)]),
    optimizer=hpo.Optimizer(
        kind=hpo.Choices(["sgd", "adam"]), lr=0.1, when={"kind": {"adam": hpo.Optimizer(lr=hpo.Range(1e-4, 1e-1))}}
    ),
    training=hpo.Training(epochs=2),
    search={"trials": 4},
)


def listen(event: hpo.events.Event) -> None:
    if isinstance(event, hpo.events.EpochEnded):
        print(event.epoch)


def main() -> float | None:
    found: hpo.StoredStudy = hpo.launch(study, storage="sqlite:///runs.db", progress=listen)
    best: hpo.Trial = found.best
    curves: dict[str, NDArray[np.float64]] = found.curves()
    print(curves["val_loss"].shape, best.curve["val_loss"].dtype, best.params["lr"])
    confirmation: hpo.Result[hpo.Confirmation] = found.confirm(seeds=2)
    proposal: hpo.Proposal = found.narrow()
    comparison: hpo.Comparison = hpo.compare(found.name, proposal.study.name)
    predicted: hpo.Predictions | hpo.TargetPredictions = hpo.predict(found.test().found.folder, "images.npy")
    assert isinstance(predicted, hpo.Predictions)
    rates: NDArray[np.float32] = predicted.probabilities
    print(confirmation.found.winner.estimate.mean, comparison.rows[0].p, rates)
    hpo.launch(study, storage=1)  # type: ignore[arg-type]
    hpo.launch(study, progress="loud")  # type: ignore[arg-type]
    hpo.Optimizer(lr="0.1")  # type: ignore[arg-type]
    hpo.Optimizer(kind="adamm", lr=0.1)  # type: ignore[arg-type]
    hpo.Training(epochs=2, precision="float16")  # type: ignore[arg-type]
    hpo.Data(x=np.zeros((4, 2)), y=[0, 1, 0, 1], x_test=curves["val_loss"], y_test=[1, 0])
    hpo.Data(x=1)  # type: ignore[arg-type]
    hpo.Network(module=hpo.Trial, args={"width": 3})
    hpo.Task(loss=len)
    cases = {True: hpo.Network(activation="tanh")}
    hpo.Network(kind="mlp", batch_norm=hpo.Choices([True, False]), when={"batch_norm": cases})
    hpo.Network(kind="mlp", when={"batch_norm": {True: hpo.Optimizer(lr=0.1)}})  # type: ignore[dict-item]
    found.winner  # type: ignore[attr-defined]
    return best.value


try:
    main()
except hpo.StudyFileError as error:
    print(error.key, error.problem)
'''
"""mypy reports unneeded ignores, so the invalid lines have to be errors."""
SETTINGS = """\
[mypy]
strict = True
[mypy-torch.*,optuna.*,sqlalchemy.*,plotly.*,scipy.*,rich.*,optuna_dashboard.*,IPython.*]
follow_imports = skip
ignore_missing_imports = True
"""
"""`mypy --strict` without following imports of large packages, which takes a minute."""


def documented() -> set[str]:
    table = (ROOT / "docs/how-to/python.md").read_text().partition("\n## All names\n")[2]
    return set(re.findall(r"`hpo\.(\w+)`", table))


def imported_for_types() -> set[str]:
    """Return the names that type checkers see."""
    tree = ast.parse(Path(hpo.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def calls() -> list[tuple[str, Any]]:
    """Return public functions, and public methods and properties of public classes other than exceptions."""
    found: list[tuple[str, Any]] = []
    for name in NAMES:
        value = getattr(hpo, name)
        if inspect.isfunction(value):
            found.append((name, value))
        elif inspect.isclass(value) and not issubclass(value, Exception):
            for key in dir(value):
                own = inspect.getattr_static(value, key)
                own = getattr(own, "fget", None) or getattr(own, "__func__", own)
                ours = inspect.isfunction(own) and own.__module__.startswith("hpo.")
                if ours and not key.startswith("_"):
                    found.append((f"{name}.{key}", own))
    return found


def test_the_public_names_are_the_documented_names() -> None:
    assert set(hpo.__all__) == documented()
    assert set(hpo.__all__) <= set(dir(hpo))
    assert list(hpo.__all__) == sorted(set(hpo.__all__))


def test_every_error_is_public() -> None:
    known = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert known <= set(hpo.__all__)


def test_type_checkers_see_the_public_names() -> None:
    assert imported_for_types() - {"import_module"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(hpo, name))


@pytest.mark.parametrize(("name", "call"), calls())
def test_a_public_call_has_a_docstring_and_types(name: str, call: Any) -> None:
    assert inspect.getdoc(call), name
    assert call.__annotations__.keys() >= {*inspect.signature(call).parameters, "return"} - {"self", "cls"}


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hpo' has no attribute 'lauch'"):
        hpo.lauch  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import hpo", HEAVY | {"pydantic"}),
        ("import hpo, hpo.api.machine, hpo.api.models, hpo.api.running, hpo.api.comparing", HEAVY),
        ("import hpo; hpo.read('studies/digits.toml'), hpo.launch, hpo.load, hpo.StoredStudy", HEAVY),
    ],
)
def test_nothing_is_imported_before_it_is_used(code: str, unwanted: set[str]) -> None:
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(loaded.stdout.split()) & unwanted
    assert loaded.stderr == ""


@pytest.mark.slow
def test_a_users_program_has_types(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--cache-dir", "cache", "program.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # mypy does not look into an editable install
    checked = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
