"""Text output: printable whatever files and storages contain, and lossless for programs."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from pathlib import Path

import optuna
import pytest
import tomli_w

import hpo
from hpo.api.displays import print_warning
from hpo.errors import HpoError
from hpo.results.doctor.finding import Finding, Verdict
from hpo.storage import open_storage
from hpo.text import escape_toml, json_text, printable, printable_lines

EVIL = "a\x1b[2J\x9b1m\u202e\r\n\x07\ud800\U000e0001é日"


def test_a_printable_line_is_lossless() -> None:
    shown = printable(EVIL)
    assert shown == r"a\x1b[2J\x9b1m\u202e\r\n\x07\ud800\U000e0001é日"
    assert printable(shown) == shown
    assert printable_lines("one\x1b\ntwo") == "one\\x1b\ntwo"


def test_machine_output_is_printable_and_lossless() -> None:
    tree = {EVIL: [EVIL, 1.5, None, {"b": EVIL}]}
    for indent in (None, 2):
        text = json_text(tree, indent)
        assert all(map(str.isprintable, text.split("\n")))
        assert json.loads(text) == tree
    whole = EVIL.replace("\ud800", "")  # which TOML, being UTF-8, has not
    text = escape_toml(tomli_w.dumps({whole: [whole]}))
    assert all(map(str.isprintable, text.split("\n")))
    assert tomllib.loads(text) == {whole: [whole]}


def test_an_error_a_warning_and_an_answer_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(HpoError(EVIL)).isprintable()
    assert str(HpoError("one\ntwo")) == "one two"
    assert all(map(str.isprintable, str(Finding(EVIL, Verdict.OK, EVIL)).split("\n")))
    print_warning(EVIL)
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


def test_a_study_of_another_program_is_printable(tmp_path: Path) -> None:
    """Its name, parameters, choices and notes may contain any characters."""
    url, evil = f"sqlite:///{tmp_path}/hpo.db", EVIL.replace("\ud800", "")
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=evil)
    study.set_user_attr("dashboard:note", evil)
    study.optimize(lambda trial: float(len(trial.suggest_categorical(evil, [evil]))), n_trials=1)
    storage.close()
    stored = hpo.load(evil, storage=url)
    shown = [*stored.top_lines(), stored.deletion_question(), repr(stored)]
    with pytest.raises(HpoError) as caught:
        stored.pause()
    shown += [str(caught.value), stored.copy(f"sqlite:///{tmp_path}/copy.db"), stored.delete()]
    assert all(map(str.isprintable, shown)), shown


def test_a_table_for_a_spreadsheet_is_printable() -> None:
    from hpo.results.export.text import csv_text

    record = {"number": 0, "state": "failed", "value": None, "values": {}, "params": {EVIL: EVIL}, "reason": EVIL}
    fill = dict.fromkeys(("seed", "epochs", "precision", "device", "started", "ended"))
    text = csv_text([{**fill, **record}])
    assert all(map(str.isprintable, text.replace("\n", "")))
    heading, row = csv.reader(io.StringIO(text))
    assert (heading[-1], row[-1]) == (printable_lines(EVIL), printable_lines(EVIL))
