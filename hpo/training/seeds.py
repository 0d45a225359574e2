"""Seeds: what every random number of training is derived from. Without torch, for what only reads a study's trials."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return 53 well-mixed bits from the parts: equal parts, equal seed. A JSON number holds 53 bits exactly."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def member_seed(study_seed: int, trial: int, repeat: int = 0) -> int:
    """Return the seed of a trial's initial weights and dropout masks: of study, trial and repeat, nothing else."""
    return derive_seed("member", study_seed, trial, repeat)
