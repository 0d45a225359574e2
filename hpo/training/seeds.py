"""Derive the seeds of all random numbers in training; importable without torch."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 53-bit hash of the parts: equal parts give equal seeds. A JSON number stores 53 bits exactly."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def member_seed(study_seed: int, trial: int, repeat: int = 0) -> int:
    """Return the seed of a trial's initial weights and dropout masks. It depends on study, trial and repeat only."""
    return derive_seed("member", study_seed, trial, repeat)
