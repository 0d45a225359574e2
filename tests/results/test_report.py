"""Reports: the page needs no network, states what is missing, and shows text from users as text."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable
from html.parser import HTMLParser

import optuna
import pytest
from optuna.trial import TrialState
from stored_studies import tree, trial
from tiny import search, study_of

import hpo
from hpo.errors import HpoError, UnknownStudyError
from hpo.results.checklist import expected_best
from hpo.results.confirm.study import create_confirming_study
from hpo.results.effort import effort_of
from hpo.results.figures.source import read_source
from hpo.results.report import report
from hpo.results.reproduce.verify import verify
from hpo.search.study_records import any_stored_study
from hpo.storage import Storage, load_study, summary

Store = Callable[..., optuna.Study]


class Page(HTMLParser):
    """A page's text outside of scripts, the tags it has, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self._open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.words.append(data)


def test_a_page_of_a_search_that_nobody_has_confirmed(stored: Store, storage: Storage) -> None:
    stored([trial(0.5), trial(0.875), trial(0.9, state=TrialState.PRUNED), trial(None, state=TrialState.FAIL)])
    page = report(storage, "digits")
    found = Page(page)
    assert found.loads == []
    assert "@media print" in page
    for words in (
        "2 complete, 1 pruned, 1 failed of 8 trials",
        "Best-1 (trial 1): validation accuracy 0.8750 in the search",
        "lr 1e-06 to 0.1, log scale",
        "1,150 training and 287 validation examples, 360 sealed test examples",
        "0" * 64,
        "Not confirmed",
        "Not verified",
        "has not been evaluated on it",
        "hpo export digits -o best.json",
        "hpo replay best.json",
    ):
        assert words in found.text, words
    assert page.count("Plotly.newPlot(") >= 4


@pytest.mark.parametrize(("test", "said"), [(10_000, "10,000"), (0, "no"), (None, "an unknown number of")])
def test_the_sealed_test_images_are_counted_as_far_as_they_are_known(
    stored: Store, storage: Storage, test: int | None, said: str
) -> None:
    made = stored([trial(0.5)])
    made.set_user_attr("hpo:data", {**made.user_attrs["hpo:data"], "test": test})
    assert f"{said} sealed test examples" in report(storage, "digits")


def test_a_limit_is_said(stored: Store, storage: Storage) -> None:
    stored([trial(0.5)], tree(search={"limits": {"parameters": 8000}}))
    assert "limit 8,000 parameters; larger networks are pruned without training" in Page(report(storage, "digits")).text


def test_a_page_of_a_confirmed_and_verified_search(storage: Storage) -> None:
    search(study_of(training={"epochs": 1}), storage)
    search(create_confirming_study(storage, "tiny", top=2, seeds=2), storage)
    verify(storage, "tiny", 1, "cpu", threading.Event(), pytest.fail)
    found = Page(report(storage, "tiny"))
    for words in (
        "the search's best score, ",
        "baseline",
        "hpo confirm tiny --top 2 --seeds 2 --splits 1",
        "hpo export tiny --confirmed -o best.json",
        "1 trial, trained again alone on cpu in float64",
        "[optimizer] lr = { low = 0.001, high = 1.0, log = true }",
    ):
        assert words in found.text, words
    assert "Not confirmed" not in found.text


def test_the_setup_answers_what_the_checklists_ask(storage: Storage) -> None:
    search(study_of(training={"epochs": 1}, search={"trials": 3}), storage)
    search(create_confirming_study(storage, "tiny", top=2, seeds=2), storage)
    found = Page(report(storage, "tiny")).text
    for words in (
        "number of runs search: 3 complete of 3 trials; confirmation: ",
        "over 2 fresh seeds on the split of the search (fewer than 10 seeds), among the 2 best configurations",
        "simultaneous by Bonferroni",
        "search.seed = 0",
        "data.split_seed = 0",
        "not evaluated by hpo test",
        f"{len(os.sched_getaffinity(0))} cores",
        f"hpo {hpo.__version__}, python",
    ):
        assert words in found, words
    effort = effort_of(storage, summary(storage, "tiny"), 1)
    assert (effort.epochs, effort.processes) == (3, 1)
    assert effort.worked_s is not None
    assert effort.elapsed_s is not None


def test_a_study_of_an_earlier_version_has_no_record_of_its_machine(stored: Store, storage: Storage) -> None:
    stored([trial(0.5)])
    found = Page(report(storage, "digits")).text
    assert "hardware not recorded software not recorded" in found
    assert "selection rule the best trial by validation accuracy" in found
    assert "variance none: each configuration was trained once" in found


def test_the_expected_best_is_that_of_random_draws(stored: Store, storage: Storage) -> None:
    values = [0.1, 0.4, 0.2, 0.3]
    stored([trial(value) for value in values], tree(search={"sampler": "random"}))
    study, source = any_stored_study(load_study(storage, "digits")), read_source(storage, "digits")
    draws = {n: [max(each) for each in itertools.product(values, repeat=n)] for n in (1, 2, 4)}
    assert expected_best(study, source) == [(str(n), f"{sum(each) / len(each):.4f}") for n, each in draws.items()]
    load_study(storage, "digits").add_trial(trial(0.2, state=TrialState.PRUNED))
    assert expected_best(study, read_source(storage, "digits")) == []


@pytest.mark.parametrize("confirmed", [False, True])
def test_markdown_has_whole_tables_and_no_markup_of_users(storage: Storage, confirmed: bool) -> None:
    name = "a|b_*<b>$"
    search(study_of(name=name, description="# one\n\n| two |", training={"epochs": 1}), storage)
    if confirmed:
        search(create_confirming_study(storage, name, top=1, seeds=2), storage)
    text = report(storage, name, "markdown")
    assert text.startswith("## Hyperparameter search: a\\|b\\_\\*\\<b\\>\\$\n\n# one \\| two \\|\n")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == (7 if confirmed else 6)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert ("tuning " in text) == confirmed


def test_what_a_study_starts_from_is_named(stored: Store, storage: Storage) -> None:
    stored([trial(0.5), trial(0.7), trial(state=TrialState.FAIL)], name="<first>")
    stored([trial(0.9)], tree(search={"start_from": ["<first>", "lost"]}))
    found = Page(report(storage, "digits")).text
    assert "starts from <first> (2 completed trials); not available: " in found
    assert "no study named 'lost'" in found


def test_a_confirmation_that_is_not_finished_is_said(storage: Storage) -> None:
    search(study_of(training={"epochs": 1}), storage)
    create_confirming_study(storage, "tiny", top=2, seeds=2)
    assert "its confirmation 'tiny-confirm' is not finished" in Page(report(storage, "tiny")).text


def test_what_a_user_wrote_is_text(stored: Store, storage: Storage) -> None:
    name = "<b>&</b>{{ 7 * 7 }}<marquee>"
    written = {**tree(), "description": "<iframe src=x></iframe>"}
    stored([trial(0.5)], written, name=name)
    found = Page(report(storage, name))
    assert not found.tags & {"iframe", "marquee"}
    assert name in found.text
    assert "<iframe src=x></iframe>" in found.text


def test_what_has_no_report(stored: Store, storage: Storage) -> None:
    stored([])
    with pytest.raises(HpoError, match="study 'digits': no finished trial yet"):
        report(storage, "digits")
    with pytest.raises(UnknownStudyError):
        report(storage, "digit")
    optuna.create_study(storage=storage, study_name="plain").add_trial(trial(2.0))
    with pytest.raises(HpoError, match="study 'plain' was not created by hpo"):
        report(storage, "plain")
