"""Functions and classes that are in no file: references, and hashes of their source."""

from __future__ import annotations

import linecache
import os
from pathlib import Path
from typing import Any

import pytest

from hpo import memory_code
from hpo.errors import CodeError
from hpo.usercode import import_code, is_imported, load_reference, one_line_error, reference_to

CELL = """\
WIDTH = 3
def helper(x):
    return x + 1
class Base:
    depth = 1
class Net(Base):
    def forward(self, x):
        return helper(x) * WIDTH
"""


def cell(source: str, *, has_source: bool = True) -> dict[str, Any]:
    """Run a notebook's cell; return its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    file = f"/tmp/ipykernel_1/{abs(hash(source))}.py"
    linecache.cache.pop(file, None)
    if has_source:
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), names)
    return names


def sha256(source: str, name: str = "Net", *, has_source: bool = True) -> str:
    memory_code.register({f"memory:{name}": cell(source, has_source=has_source)[name]})
    return memory_code.find(f"memory:{name}").sha256


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("helper(x) * WIDTH", "helper(x) * WIDTH * 2"),
        ("x + 1", "x + 2"),
        ("WIDTH = 3", "WIDTH = 4"),
        ("= 1\n", "= 2\n"),
    ],
    ids=["the class", "a function that it uses", "a constant that it uses", "its base class"],
)
def test_the_hash_is_that_of_the_source_and_of_what_it_uses(old: str, new: str, has_source: bool) -> None:
    before = sha256(CELL, has_source=has_source)
    assert before == sha256(CELL + "\nOTHER = 1\n", has_source=has_source)
    assert sha256(CELL.replace(old, new), has_source=has_source) != before


def test_a_class_of_a_file_has_a_reference_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "my_own_net.py").write_text(
        "class Net:\n    class Inner: pass\ndef made():\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "nets")
    module: Any = __import__("my_own_net")
    assert reference_to(module.Net, tmp_path) == "nets/my_own_net.py:Net"
    assert reference_to(module.Net.Inner, tmp_path / "nets") == "my_own_net.py:Net.Inner"
    assert reference_to(module.made, tmp_path / "other") == "../nets/my_own_net.py:made"
    assert load_reference("nets/my_own_net.py:Net", tmp_path).__name__ == "Net"


def test_what_is_in_no_file_of_its_own_is_in_memory(tmp_path: Path) -> None:
    assert reference_to(cell(CELL)["Net"], tmp_path) == "memory:Net"
    assert reference_to(Path, tmp_path) == "memory:Path"

    def local() -> None: ...

    assert reference_to(local, tmp_path) == "memory:local"
    with pytest.raises(ValueError, match=r"^must be a function with a name: define it with `def` \(got a lambda\)$"):
        reference_to(lambda: 0, tmp_path)
    with pytest.raises(ValueError, match=r"not an object of one \(got an object of type Base\)$"):
        reference_to(cell(CELL)["Base"](), tmp_path)


def test_code_in_memory_is_imported_and_compared_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("value = 1\n")
    first, second = cell(CELL)["Net"], cell(CELL.replace("x + 1", "x + 2"))["Net"]
    memory_code.register({"memory:Net": first})
    code = import_code(["memory:Net", "other.py:value"], tmp_path)
    assert [*code.files] == ["memory:Net", "other.py"]
    assert load_reference("memory:Net", tmp_path) is first
    assert is_imported(code)
    memory_code.register({"memory:Net": second})
    assert not is_imported(code)
    assert import_code(["memory:Net"], tmp_path).changed_since(code.record()) == ["memory:Net", "other.py"]
    with pytest.raises(CodeError, match=r"^memory:Absent was defined in another process and is in no file"):
        import_code(["memory:Absent"], tmp_path)


def test_an_error_names_the_line_of_the_cell(tmp_path: Path) -> None:
    names = cell("def wrong(x):\n    return x / 0\n")
    memory_code.register({"memory:wrong": names["wrong"]})
    with pytest.raises(ZeroDivisionError) as caught:
        names["wrong"](1)
    assert one_line_error(caught.value, tmp_path) == "ZeroDivisionError: division by zero (a cell, line 2, in wrong)"
    assert not os.path.exists("/tmp/ipykernel_1")
