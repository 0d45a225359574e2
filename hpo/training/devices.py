"""The device that trains, by name.

Knows nothing of what runs there.
"""

from __future__ import annotations

import torch

from hpo.errors import UsageError


def find_device(name: str) -> torch.device:
    """Return the device called `name` ("auto": cuda, else mps, else cpu). Raises UsageError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:1 or mps") from error
    available = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": _has_mps(),
    }
    if device.type not in available:
        raise UsageError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:1 or mps")
    if not available[device.type]:
        raise UsageError(f"--device {name}: not available on this machine; use --device auto")
    return device


def describe(device: torch.device) -> str:
    """Return the device's name as it is recorded: "cpu", or "cuda (NVIDIA H100)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
