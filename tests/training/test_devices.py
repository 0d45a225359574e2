"""Devices by name; errors for unknown and absent devices name the valid choices in one line."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import UsageError
from hpo.training.devices import describe_device, find_device


def test_cpu_and_auto() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    assert describe_device(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cuda:one", "CPU", "meta", "xla", "hip:0", "a\nb"])
def test_unknown(name: str) -> None:
    with pytest.raises(UsageError, match="unknown; use auto, cpu, cuda, cuda:1 or mps") as caught:
        find_device(name)
    assert str(caught.value).isprintable()


@given(st.text(max_size=20) | st.sampled_from(["\udc80", "cuda:\udcff"]))
def test_any_name_gives_a_device_or_a_one_line_error(name: str) -> None:
    try:
        found = find_device(name).type
    except UsageError as error:
        found = str(error)
    assert found in ("cpu", "cuda", "mps") or found.startswith("--device ")
    assert found.isprintable()


@pytest.mark.parametrize("name", ["cuda:99", "cpu:1"])
def test_absent(name: str) -> None:
    with pytest.raises(UsageError, match=f"^--device {name}: not available on this machine; use --device auto$"):
        find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_cuda() -> None:
    with pytest.raises(UsageError, match=r"^--device cuda: not available on this machine; use --device auto$"):
        find_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda() -> None:
    assert find_device("auto").type == "cuda"
    assert describe_device(find_device("cuda")).startswith("cuda (")
