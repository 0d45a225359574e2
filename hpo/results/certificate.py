"""Certificates of `hpo verify`: how far the curves of stored trials differ when each is trained again alone.

A certificate is stored with its study, and exports and reports contain it. It states the largest differences and does
not judge them. Imports no torch; `reproduce/verify.py` makes certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.results.output import Result
from hpo.results.ranking import metric_label

VERIFIED = "hpo:verified"
"""The study attribute with the certificate."""

Certificate = dict[str, Any]


def certificate_of(user_attrs: Mapping[str, Any], name: str) -> Certificate | None:
    """Return the certificate of a study under its present name; None where it has none."""
    found: Certificate | None = user_attrs.get(VERIFIED)
    return None if found is None else found | {"study": name}


class VerificationResult(Result[Certificate]):
    """A certificate as text and as JSON."""

    def tree(self) -> dict[str, Any]:
        """Return the certificate."""
        return self.found

    def lines(self) -> list[str]:
        """Return a line for each trial, and one for the largest difference of a score."""
        certificate = self.found
        label = metric_label(certificate["metric"])
        mixed = "," in certificate["precision"]
        rows = [
            f"trial {each['trial']}{', ' + each['precision'] if mixed else ''}: {label} {each['score']:.6g} alone, "
            f"{each['stored']:.6g} stored; largest difference in any epoch: {largest_text(each['largest'])}"
            for each in certificate["trials"]
        ]
        trials = f"{len(rows)} trials, each trained again alone" if len(rows) > 1 else "1 trial, trained again alone"
        head = f"{certificate['study']}: {trials} on {certificate['device']} in {certificate['precision']}"
        return [*rows, f"{head}; the largest difference of a score is {certificate['score']:.2g}"]


def largest_text(largest: Mapping[str, float]) -> str:
    """Return `train_loss 0, val_loss 1e-09`: the largest difference of each metric."""
    return ", ".join(f"{metric} {value:.2g}" for metric, value in largest.items())
