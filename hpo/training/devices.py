"""The device that trains, by name, and what it says when its memory is full.

Knows nothing of what runs there.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from hpo.errors import UsageError
from hpo.text import printable
from hpo.training.global_state import WARNINGS_LOCK

TRIED = 64  # rows and columns of the matrices that a device multiplies to show that it works


@dataclass(frozen=True)
class DeviceCheck:
    """What became of a device that was tried: its name as in `describe`, and its memory where that is its own.

    `bfloat16` is whether it has instructions for that, None where it does not tell; `problem` why it cannot be used, ""
    where it can.
    """

    name: str
    free_bytes: int | None
    memory_bytes: int | None
    bfloat16: bool | None
    problem: str


def find_device(name: str) -> torch.device:
    """Return the device called `name` ("auto": cuda, else mps, else cpu). Raises UsageError where there is none."""
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
    """Return the device's name as it is recorded: "cpu", or "cuda (NVIDIA H100)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


@dataclass(frozen=True)
class DetectedDevices:
    """What torch finds on this machine: the devices, the CUDA it is built for ("" for none), and its threads.

    `warning` is what it said while it looked, such as that a driver is too old.
    """

    devices: tuple[torch.device, ...]
    cuda: str
    threads: int
    warning: str


def detect_devices() -> DetectedDevices:
    """Look for devices; they are not tried."""
    with WARNINGS_LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["cpu", *(f"cuda:{index}" for index in range(cuda)), *(["mps"] if _has_mps() else [])]
    said = " ".join(" ".join(str(each.message).split()) for each in caught)
    return DetectedDevices(tuple(map(torch.device, names)), torch.version.cuda or "", torch.get_num_threads(), said)


def check_device(device: torch.device) -> DeviceCheck:
    """Multiply two small matrices on the device, and see whether the product is right."""
    name, free, memory = str(device), None, None
    bfloat16 = None
    try:
        name = describe_device(device)
        if device.type == "cuda":
            free, memory = torch.cuda.mem_get_info(device)
        bfloat16 = _has_bfloat16(device)
        ones = torch.ones(TRIED, TRIED, device=device)
        right = bool(((ones @ ones) == TRIED).all())
    except RuntimeError as error:
        said = str(error).split("\n", 1)[0]
        return DeviceCheck(name, free, memory, bfloat16, said or type(error).__name__)
    return DeviceCheck(name, free, memory, bfloat16, "" if right else "it multiplies wrongly")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the error says that a device's memory, or the process's, is full."""
    # The CPU's allocator has no exception type of its own, and what it says was seen cut short: its own text needs
    # memory too. oneDNN gives no reason.
    said = ("[enforce fail a", "can't allocate memory", "could not create a primitive", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in str(error) for part in said)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _has_bfloat16(device: torch.device) -> bool | None:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return None
    return any(name.endswith("bf16") and bool(has) for name, has in torch.cpu.get_capabilities().items())
