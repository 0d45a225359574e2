"""User code: imports, hashes, and errors."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo import usercode
from hpo.errors import CodeError
from hpo.usercode import find_code_folder, import_code, load_reference, one_line_error, user_traceback


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def raised_by(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        call()
    return caught.value


def test_a_reference_names_an_object_of_its_file(tmp_path: Path) -> None:
    write(tmp_path, my_net="class Net:\n    class Inner: pass\n")
    write(tmp_path / "nets", other="value = 3\n")
    assert load_reference("my_net.py:Net", tmp_path).__name__ == "Net"
    assert load_reference("my_net.py:Net.Inner", tmp_path).__name__ == "Inner"
    assert load_reference("nets/other.py:value", tmp_path) == 3
    assert load_reference("my_net.py:Net", tmp_path) is load_reference("my_net.py:Net", tmp_path)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("your_net.py:Net", "your_net.py: no such file in FOLDER"),
        ("my_net.py:Nett", "my_net.py has no 'Nett' (did you mean 'Net'?)"),
        ("broken.py:Net", "broken.py cannot be imported: SyntaxError: '(' was never closed (broken.py, line 2)"),
        ("raises.py:Net", "raises.py cannot be imported: ValueError: not today (raises.py, line 2)"),
        (
            "deeper.py:Net",
            "deeper.py cannot be imported: NameError: name 'nothing' is not defined (helper.py, line 2, in help)",
        ),
        ("ends.py:Net", "ends.py cannot be imported: SystemExit: 3 (ends.py, line 2)"),
        ("needs.py:Net", "needs.py cannot be imported: ModuleNotFoundError: No module named 'nobody_has_this'"),
    ],
)
def test_a_failed_import_is_an_error_of_one_line(tmp_path: Path, reference: str, message: str) -> None:
    write(
        tmp_path,
        my_net="class Net: pass\n",
        broken="\nprint(\n",
        raises="\nraise ValueError('not\\ntoday')\n",
        deeper="import helper\nhelper.help()\n",
        helper="def help():\n    nothing\n",
        ends="import sys\nsys.exit(3)\n",
        needs="import nobody_has_this\n",
    )
    with pytest.raises(CodeError) as caught:
        load_reference(reference, tmp_path)
    assert str(caught.value).startswith(message.replace("FOLDER", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_the_file_and_its_imports_from_its_own_folder_are_hashed(tmp_path: Path) -> None:
    write(tmp_path, my_net="import json, parts.blocks\nfrom plain import block\n", beside="")
    write(tmp_path / "plain", block="")  # without an __init__.py
    write(tmp_path / "parts", __init__="", blocks="from . import layers\n", layers="")
    code = import_code(["my_net.py:Net"], tmp_path)
    files = ["my_net.py", "parts/__init__.py", "parts/blocks.py", "parts/layers.py", "plain/block.py"]
    assert code.files == {file: sha256(tmp_path / file) for file in files}
    assert code.record() == {"folder": str(tmp_path.resolve()), "files": dict(code.files)}


def test_installed_packages_are_not_user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / ".venv" / "packages"
    write(packages, bought="")
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setattr("hpo.usercode._INSTALLED", (packages.resolve(),))
    write(tmp_path, my_net="import bought, helper\n", helper="")
    assert set(import_code(["my_net.py:Net"], tmp_path).files) == {"my_net.py", "helper.py"}


def test_each_file_has_its_own_modules(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(
            tmp_path / folder, my_net=f"import helper\nwhere = helper.where, '{folder}'\n", helper=f"where = '{folder}'"
        )
    assert load_reference("my_net.py:where", tmp_path / "one") == ("one", "one")
    assert load_reference("my_net.py:where", tmp_path / "two") == ("two", "two")
    assert load_reference("my_net.py:where", tmp_path / "one") == ("one", "one")
    one = import_code(["my_net.py:where"], tmp_path / "one")
    assert one.changed_since(import_code(["my_net.py:where"], tmp_path / "two").record()) == ["helper.py", "my_net.py"]
    both = import_code(["one/my_net.py:where", "two/my_net.py:where"], tmp_path)
    assert list(both.files) == ["one/helper.py", "one/my_net.py", "two/helper.py", "two/my_net.py"]


def test_modules_imported_before_stay_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, my_net="import helper\n", helper="")
    monkeypatch.syspath_prepend(str(tmp_path))
    import helper  # type: ignore[import-not-found]

    assert set(import_code(["my_net.py:helper"], tmp_path).files) == {"helper.py", "my_net.py"}
    assert load_reference("my_net.py:helper", tmp_path) is not helper
    assert sys.modules["helper"] is helper


def test_a_file_may_have_the_name_of_an_imported_module(tmp_path: Path) -> None:
    before = sys.modules["json"]
    write(tmp_path, json="import json\ndumps = json.dumps\n")
    assert load_reference("json.py:dumps", tmp_path) is before.dumps
    assert sys.modules["json"] is before


def test_functions_may_import_from_their_folder_when_they_run(tmp_path: Path) -> None:
    write(tmp_path, my_net="def run():\n    import helper_of_later\n    return helper_of_later.value\n")
    write(tmp_path, helper_of_later="value = 4")
    assert load_reference("my_net.py:run", tmp_path)() == 4


def test_changed_files_are_imported_again_by_import_code_only(tmp_path: Path) -> None:
    """As fast and as long as before: Python's own bytecode would not notice."""
    write(tmp_path, my_net="from helper import value\n", helper="value = 1\n")
    before = import_code(["my_net.py:value"], tmp_path)
    assert import_code(["my_net.py:value"], tmp_path).changed_since(before.record()) == []
    write(tmp_path, helper="value = 2\n")
    assert load_reference("my_net.py:value", tmp_path) == 1
    assert import_code(["my_net.py:value"], tmp_path).changed_since(before.record()) == ["helper.py"]
    assert load_reference("my_net.py:value", tmp_path) == 2
    write(tmp_path, my_net="value = 3\n")
    assert import_code(["my_net.py:value"], tmp_path).changed_since(before.record()) == ["helper.py", "my_net.py"]
    assert load_reference("my_net.py:value", tmp_path) == 3


def test_code_is_searched_in_its_folder_and_then_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "first", my_net="import helper", helper="")
    write(tmp_path / "second", my_net="import helper")
    record = import_code(["my_net.py:Net"], tmp_path / "first").record()
    where = functools.partial(find_code_folder, ["my_net.py:Net"], record)
    monkeypatch.chdir(tmp_path / "second")
    assert where() == (tmp_path / "first").resolve()
    (tmp_path / "first" / "helper.py").unlink()
    assert where() == (tmp_path / "first").resolve()  # nobody has it all
    (tmp_path / "first" / "my_net.py").unlink()
    assert where() == Path.cwd()
    assert where(tmp_path / "third") == Path.cwd()
    write(tmp_path / "second", helper="")
    assert where() == Path.cwd()
    (tmp_path / "second" / "my_net.py").unlink()
    assert where() == (tmp_path / "first").resolve()  # nobody has it


def test_a_traceback_has_the_frames_of_user_code_only(tmp_path: Path) -> None:
    write(
        tmp_path,
        my_net="""
import json
from helper import parsed

def run(text):
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        raise RuntimeError("no settings") from error
""",
        helper="import json\n\ndef parsed(text):\n    return json.loads(text)\n",
    )
    error = raised_by(lambda: load_reference("my_net.py:run", tmp_path)("{"))
    text = user_traceback(error, tmp_path)
    assert "return json.loads(text)" in text
    assert 'raise RuntimeError("no settings") from error' in text
    assert "direct cause" in text
    assert text.rstrip().endswith("RuntimeError: no settings")
    assert "decoder.py" not in text
    assert "test_usercode.py" not in text
    assert one_line_error(error, tmp_path) == "RuntimeError: no settings (my_net.py, line 9, in run)"


def test_an_error_without_user_code_keeps_its_traceback(tmp_path: Path) -> None:
    error = raised_by(lambda: int("x"))
    assert "test_usercode.py" in user_traceback(error, tmp_path)
    assert one_line_error(error, tmp_path) == "ValueError: invalid literal for int() with base 10: 'x'"


def test_nothing_is_written_beside_the_users_files(tmp_path: Path) -> None:
    write(tmp_path, my_net="import helper\n", helper="")
    load_reference("my_net.py:helper", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helper.py", "my_net.py"]


def test_a_file_is_user_code_where_its_links_lead(tmp_path: Path) -> None:
    user, other = tmp_path.resolve() / "user", tmp_path.resolve() / "other"
    for folder in (user, other):
        folder.mkdir()
        (folder / "net.py").touch()
    (user / "link.py").symlink_to(other / "net.py")
    (other / "link.py").symlink_to(user / "net.py")
    (other / "folder").symlink_to(user)
    inside = [user / "net.py", other / "link.py", other / "folder" / "net.py"]
    outside = [other / "net.py", user / "link.py", other / "folder" / "link.py"]
    assert all(usercode._is_user_code(str(each), user) for each in inside)
    assert not any(usercode._is_user_code(str(each), user) for each in outside)
