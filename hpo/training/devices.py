"""The device that trains, by name, and what it says when its memory is full.

Knows nothing of what runs there.
"""

from __future__ import annotations

import torch

from hpo.errors import UsageError


def find_device(name: str) -> torch.device:
    """Return the device called `name` ("auto": cuda, else mps, else cpu). Raises UsageError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    option = f"--device {name if name.isprintable() else ascii(name)}"
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


def describe(device: torch.device) -> str:
    """Return the device's name as it is recorded: "cpu", or "cuda (NVIDIA H100)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the error says that a device's memory, or the process's, is full."""
    # The CPU's allocator has no exception type of its own, and what it says was seen cut short: its own text needs
    # memory too. oneDNN gives no reason.
    said = ("[enforce fail a", "can't allocate memory", "could not create a primitive", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in str(error) for part in said)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
