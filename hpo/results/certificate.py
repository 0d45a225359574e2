"""The certificate that a study's trials are what they would be alone: some of them, trained again outside a population.

It is kept with the study, and its export and report carry it. It states the largest differences that were seen, and
judges nothing. Knows nothing of how it is made, so that an export does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.results.ranking import METRIC_LABELS
from hpo.results.result import Result

VERIFIED = "hpo:verified"
"""The attribute that holds a study's certificate."""

Certificate = dict[str, Any]


def certificate_of(user_attrs: Mapping[str, Any], name: str) -> Certificate | None:
    """Return the certificate that is kept with the study, under the name that it has now; None where it has none."""
    found: Certificate | None = user_attrs.get(VERIFIED)
    return None if found is None else found | {"study": name}


class VerificationResult(Result[Certificate]):
    """A certificate as text and as JSON."""

    def tree(self) -> dict[str, Any]:
        """Return the certificate."""
        return self.found

    def lines(self) -> list[str]:
        """Return a line for each trial, and one for the largest difference."""
        return verified_lines(self.found)


def verified_lines(certificate: Certificate) -> list[str]:
    """Return what a certificate says."""
    label = METRIC_LABELS[certificate["metric"]]
    mixed = "," in certificate["precision"]
    rows = [
        f"trial {each['trial']}{', ' + each['precision'] if mixed else ''}: {label} {each['score']:.6g} alone, "
        f"{each['stored']:.6g} stored; largest difference in any epoch: {_listed(each['largest'])}"
        for each in certificate["trials"]
    ]
    trained = f"{len(rows)} trials, each trained again alone" if len(rows) > 1 else "1 trial, trained again alone"
    whole = f"{certificate['study']}: {trained} on {certificate['device']} in {certificate['precision']}"
    return [*rows, f"{whole}; the largest difference of a score is {certificate['score']:.2g}"]


def _listed(largest: dict[str, float]) -> str:
    return ", ".join(f"{metric} {value:.2g}" for metric, value in largest.items())
