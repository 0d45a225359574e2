"""Storage URLs: valid and invalid ones; passwords are never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import StorageError
from hpo.storage.artifacts import artifact_folder
from hpo.storage.location import locate, mask


def test_the_default_is_a_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    assert locate(None).file == tmp_path / "hpo.db"
    assert locate(None).shown == "sqlite:///hpo.db"


def test_the_environment_comes_before_the_default_and_a_url_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_STORAGE", f"sqlite:///{tmp_path}/env.db")
    assert locate(None).file == tmp_path / "env.db"
    assert locate(f"sqlite:///{tmp_path}/given.db").file == tmp_path / "given.db"
    monkeypatch.setenv("HPO_STORAGE", "")
    assert locate(None).shown == "sqlite:///hpo.db"


def test_a_later_change_of_folder_does_not_move_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = locate("sqlite:///here.db")
    monkeypatch.chdir("/")
    assert location.url.database == str(tmp_path / "here.db")


def test_postgresql_means_psycopg_and_keeps_its_parameters() -> None:
    location = locate("postgresql://ann:s3cret@db.example:5433/hpo?sslmode=verify-full")
    assert location.full_url == "postgresql+psycopg://ann:s3cret@db.example:5433/hpo?sslmode=verify-full"
    assert location.shown == "postgresql://ann:***@db.example:5433/hpo?sslmode=verify-full"
    assert location.file is None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("hpo.db", "not a storage URL"),
        ("", "not a storage URL"),
        ("postgresql://ann:s3cret@host:port/db", "not a storage URL"),
        ("mysql://ann:s3cret@host/db", "unknown kind of storage 'mysql'; known: sqlite, postgresql"),
        ("postgres://host/db", "unknown kind of storage 'postgres' (did you mean 'postgresql'?)"),
        ("sqlite://", "is lost when the process ends"),
        ("sqlite:///:memory:", "is lost when the process ends"),
        ("sqlite://hpo.db", "a file has no host"),
        ("sqlite:///hpo.db?mode=ro", "no parameters"),
        ("sqlite:///no/such/folder/hpo.db", "does not exist; create it first"),
        ("sqlite:///a\0b", "not a file name"),
        ("sqlite:///" + "x" * 5000, "too long"),
    ],
)
def test_a_wrong_url_is_one_line(url: str, problem: str) -> None:
    with pytest.raises(StorageError) as caught:
        locate(url)
    message = str(caught.value)
    assert problem in message
    assert message.isprintable()
    assert "s3cret" not in message


@given(url=st.text() | st.builds("{}:///{}".format, st.sampled_from(["sqlite", "postgresql"]), st.text()))
def test_any_text_is_a_location_or_one_line(url: str) -> None:
    try:
        said = locate(url).shown
    except StorageError as error:
        said = str(error)
    assert said.isprintable()


@given(password=st.text(alphabet=st.characters(codec="ascii")))
def test_a_password_is_never_shown(password: str) -> None:
    secret = f"<<{password}>>"
    in_a_query = f"<<{password.replace('&', '')}>>"
    for url in (
        f"postgresql://ann:{secret}@host/db",
        f"postgresql://:{secret}@host/db?x=1",
        f"postgresql://host/db?user=ann&password={in_a_query}",
        f"postgresql://host/db?sslpassword={in_a_query}&sslmode=require",
    ):
        shown = mask(url)
        assert shown.startswith("postgresql://")
        assert shown.isprintable()
        assert "<<" not in shown
        assert ">>" not in shown


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("sqlite:///hpo.db", "postgresql://ann@host:5432/db", "postgresql:///db?host=/run/pg", os.devnull):
        assert mask(url) == url


def test_a_user_without_a_home_folder_must_name_the_artifact_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_DATA_HOME", "HPO_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    with pytest.raises(StorageError, match=r"no home folder; set HOME, or name a folder in HPO_ARTIFACTS"):
        artifact_folder(locate("postgresql://server/studies"))
