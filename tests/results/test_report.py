"""Reports: the page needs no network, states what is missing, and shows text from users as text."""

from __future__ import annotations

import threading
from collections.abc import Callable
from html.parser import HTMLParser

import optuna
import pytest
from optuna.trial import TrialState
from stored_studies import tree, trial
from tiny import search, study_of

from hpo.errors import HpoError, UnknownStudyError
from hpo.results.confirm.study import create_confirming_study
from hpo.results.report import report
from hpo.results.reproduce.verify import verify
from hpo.storage import Storage

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
        "hpo confirm tiny --top 2 --seeds 2",
        "hpo export tiny --confirmed -o best.json",
        "1 trial, trained again alone on cpu in float64",
        "[optimizer] lr = { low = 0.001, high = 1.0, log = true }",
    ):
        assert words in found.text, words
    assert "Not confirmed" not in found.text


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
