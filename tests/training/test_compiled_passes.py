"""Passes in C equal torch's operations; they are compiled once, and training goes on by torch where they cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hpo.training.compiled import library, passes
from hpo.training.compiled.library import CompilationError, load_library
from hpo.training.compiled.passes import Passes, load_passes, passes_for
from hpo.training.stacking.dropout import Dropout

SOURCE = Path(passes.__file__).with_name("passes.c")
TYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of compiled libraries of a user who has none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hpo" / "compiled"


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let this process load passes anew."""
    passes._load.cache_clear()
    yield
    passes._load.cache_clear()


def compiler(folder: Path, script: str) -> Path:
    """Write a compiler as a shell script."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def loaded(dtype: torch.dtype) -> Passes:
    found = passes_for(torch.empty(0, dtype=dtype))
    assert found is not None, f"these tests need a C compiler: {load_passes(dtype)}"
    return found


@pytest.mark.parametrize("dtype", TYPES)
@given(
    rates=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=4).filter(any),
    units=st.integers(1, 60),
    batch=st.integers(1, 50),
)
def test_dropout_masks_are_the_same_bit_for_bit(dtype: torch.dtype, rates: list[float], units: int, batch: int) -> None:
    dropout = Dropout("", [nn.Dropout(rate) for rate in rates])
    dropout.set_keys(torch.tensor([[3 - (index << 60)] for index in range(len(rates))]))
    x = torch.randn(len(rates), units, batch, dtype=dtype)
    out = x.clone()
    loaded(dtype).drop(out, *dropout.mask_numbers(units * batch, x))
    assert torch.equal(out, x * dropout.mask_of_units(x))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),  # 100 roundings of 6e-8 in the sums of a row
        (torch.bfloat16, 0.02),  # a few roundings of 0.004
    ],
)
def test_passes_in_low_precision_are_as_exact_as_its_roundings(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(3, 5, 100, generator=generator).to(dtype).double() for _ in range(2))
    weight, shift = torch.randn(2, 3, 5, generator=generator).double() + 2

    def results(dtype: torch.dtype) -> list[Tensor]:
        real = torch.float64 if dtype == torch.float64 else torch.float32
        products, grad, vectors = x.to(dtype), g.to(dtype, copy=True), torch.empty(2, 3, 5, dtype=dtype)
        scale = weight.to(real)
        out, statistics = loaded(dtype).normalize(products, None, scale, shift.to(real), 1e-5, True)
        loaded(dtype).backward(grad, out, True, None, vectors[0], products, scale, statistics, vectors[1])
        return [statistics, out, grad, vectors]

    for exact, found in zip(results(torch.float64), results(dtype), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=10 * tolerance)


def test_values_are_rounded_to_bfloat16_as_by_torch() -> None:
    numbers = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20), 3e38, torch.nan, 1e-40])
    values = torch.cat([numbers, torch.randn(1000, generator=torch.Generator().manual_seed(0))]).unsqueeze(0)
    copies, grads, zero = values.bfloat16(), torch.zeros_like(values).bfloat16(), torch.zeros(1, 1)
    copies.zero_()
    loaded(torch.bfloat16).update("descend", [values, grads, copies], [zero, None, None], [])
    assert torch.equal(copies.nan_to_num(nan=7), values.bfloat16().nan_to_num(nan=7))
    assert copies.isnan().sum() == 1


def test_torch_is_used_for_other_types_and_with_threads_inside_of_operations() -> None:
    assert passes_for(torch.empty(1, dtype=torch.float16)) is None
    torch.set_num_threads(2)
    try:
        assert passes_for(torch.empty(1)) is None
    finally:
        torch.set_num_threads(1)
    assert passes_for(torch.empty(1)) is not None


def test_a_library_is_compiled_once_for_each_source_and_compiler(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    logging = compiler(tmp_path, f'echo call >> {calls}; exec cc -DVERSION=$VERSION "$@"')
    monkeypatch.setenv("CC", f"{logging} -DOPTION=1")
    monkeypatch.setenv("VERSION", "1")
    for _ in range(3):
        load_library(SOURCE, ["REAL=float"])
    assert len(list(cache.iterdir())) == 1
    assert len(calls.read_text().split()) == 4  # macros, compilation, macros, macros
    monkeypatch.setenv("VERSION", "2")
    load_library(SOURCE, ["REAL=float"])
    load_library(SOURCE, ["REAL=double"])
    assert len(list(cache.iterdir())) == 3
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_damaged_library_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = 'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo text > "$2"; fi; shift; done'
    monkeypatch.setenv("CC", str(compiler(tmp_path, write_text)))
    with pytest.raises(CompilationError, match="cannot be loaded") as raised:
        load_library(SOURCE, ["REAL=float"])
    (path,) = cache.iterdir()
    assert str(raised.value).startswith(f"{path}: ")


def test_processes_may_compile_at_the_same_time(cache: Path) -> None:
    code = "import torch; from hpo.training.compiled.passes import load_passes; print(load_passes(torch.float32))"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in started] == ["None\n"] * 3
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'error: bad' >&2; exit 1", r"the C compiler '.*compiler' failed \(error: bad\)"),
        ("exit 1", r"failed \(no message\)"),
        (
            "printf 'In file from a.c:\\nb.h:1: fatal error: none\\n' >&2; exit 1",
            r"failed \(b\.h:1: fatal error: none\)",
        ),
        ('exec cc -DREAL=none "$@"', r"failed \(.*unknown type name.*\)"),
        ("exec sleep 60", r"failed \(.*timed out after 0\.2 seconds\)"),
    ],
)
def test_a_compiler_that_fails_is_a_reason(
    script: str, message: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", str(compiler(tmp_path, script)))
    if "sleep" in script:
        monkeypatch.setattr(library, "TIMEOUT_S", 0.2)
    with pytest.raises(CompilationError, match=message):
        load_library(SOURCE, [])
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("command", ['cc "x', "cc '"])
def test_a_command_with_an_open_quote_is_a_reason(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(CompilationError, match=r"CC is .*, which is no command \(No closing quotation\)"):
        load_library(SOURCE, ["REAL=float"])


@pytest.mark.parametrize("command", ["", " ", "''"])
def test_an_empty_command_is_cc(command: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    load_library(SOURCE, ["REAL=float"])
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_without_a_compiler_training_uses_torch(fresh: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert load_passes(torch.float32) == "there is no C compiler 'no-such-compiler'"
    assert passes_for(torch.empty(1)) is None


def test_a_folder_that_others_may_write_to_is_refused(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    with pytest.raises(CompilationError, match="others may write to it"):
        load_library(SOURCE, ["REAL=float"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(cache: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    os.chown(cache, 12345, -1)
    with pytest.raises(CompilationError, match="belongs to another user"):
        load_library(SOURCE, ["REAL=float"])


def test_a_user_without_a_home_folder_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(*arguments: object) -> str:
        raise RuntimeError("no home")

    monkeypatch.setattr("platformdirs.user_cache_dir", no_home)
    with pytest.raises(CompilationError, match="this user has no home folder"):
        load_library(SOURCE, ["REAL=float"])
