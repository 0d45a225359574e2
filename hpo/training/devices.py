"""Find, name and check the device to train on, and recognize out-of-memory errors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from hpo.errors import UsageError
from hpo.text import printable
from hpo.training.global_locks import WARNINGS_LOCK

CHECK_SIZE = 64
"""Rows and columns of the matrices that `check_device` multiplies."""


@dataclass(frozen=True)
class DeviceCheck:
    """Result of checking a device.

    `name` is that of `describe_device`. `free_bytes` and `memory_bytes` are None for a device without memory of its
    own. `bfloat16` says whether the device has bfloat16 instructions, None where torch cannot tell. `problem` says why
    the device cannot be used, "" if it works.
    """

    name: str
    free_bytes: int | None
    memory_bytes: int | None
    bfloat16: bool | None
    problem: str


def find_device(name: str) -> torch.device:
    """Return the device called `name` ("auto": cuda, else mps, else cpu).

    Raises UsageError for an unknown name and for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    option = f"--device {printable(name)}"
    try:
        device = torch.device(name)
    except (RuntimeError, UnicodeEncodeError) as error:
        raise UsageError(f"{option}: unknown; use auto, cpu, cuda, cuda:1 or mps") from error
    available = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": _has_mps() and device.index in (None, 0),
    }
    if device.type not in available:
        raise UsageError(f"{option}: unknown; use auto, cpu, cuda, cuda:1 or mps")
    if not available[device.type]:
        raise UsageError(f"{option}: not available on this machine; use --device auto")
    return device


def describe_device(device: torch.device) -> str:
    """Return the device's name as it is stored with a study: "cpu", or "cuda (NVIDIA H100)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


@dataclass(frozen=True)
class DetectedDevices:
    """Devices that torch finds on this machine.

    `cuda` is the CUDA version that torch is built for ("" without CUDA), `threads` the number of CPU threads that torch
    uses, `warning` the warnings that torch raised while it searched, such as an outdated driver.
    """

    devices: tuple[torch.device, ...]
    cuda: str
    threads: int
    warning: str


def detect_devices() -> DetectedDevices:
    """Return the devices that torch finds, without checking them."""
    with WARNINGS_LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["cpu", *(f"cuda:{index}" for index in range(cuda)), *(["mps"] if _has_mps() else [])]
    warning = " ".join(" ".join(str(each.message).split()) for each in caught)
    return DetectedDevices(tuple(map(torch.device, names)), torch.version.cuda or "", torch.get_num_threads(), warning)


def check_device(device: torch.device) -> DeviceCheck:
    """Multiply two small matrices on the device and compare the product with the expected one."""
    name, free, memory = str(device), None, None
    bfloat16 = None
    try:
        name = describe_device(device)
        if device.type == "cuda":
            free, memory = torch.cuda.mem_get_info(device)
        bfloat16 = has_bfloat16(device)
        ones = torch.ones(CHECK_SIZE, CHECK_SIZE, device=device)
        correct = bool(((ones @ ones) == CHECK_SIZE).all())
    except RuntimeError as error:
        message = str(error).split("\n", 1)[0]
        return DeviceCheck(name, free, memory, bfloat16, message or type(error).__name__)
    return DeviceCheck(name, free, memory, bfloat16, "" if correct else "a matrix product computed on it is wrong")


def has_bfloat16(device: torch.device) -> bool | None:
    """Return whether the device has bfloat16 instructions, None where torch cannot tell."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return None
    return any(name.endswith("bf16") and bool(has) for name, has in torch.cpu.get_capabilities().items())


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the error means that the memory of a device or of the process is full."""
    # The CPU allocator has no exception type of its own, and its message can be truncated, for the message needs memory
    # too. oneDNN's message gives no reason.
    messages = ("[enforce fail a", "can't allocate memory", "could not create a primitive", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in messages)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
