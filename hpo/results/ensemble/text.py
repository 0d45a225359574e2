"""Text and JSON of an ensemble: its score and its members, and how optimistic the score is."""

from __future__ import annotations

from typing import Any

from hpo.results.ensemble.record import Ensemble
from hpo.results.output import Result
from hpo.results.ranking import metric_label
from hpo.text import columns, hpo_command


class EnsembleResult(Result[Ensemble]):
    """A selected ensemble as text and as JSON."""

    def tree(self) -> dict[str, Any]:
        """Return the ensemble, the weight of each member, and the score of the best one alone."""
        found = self.found
        members = [{**vars(each), "weight": found.weight(each)} for each in found.members]
        return {"study": found.study, **found.to_json(), "members": members, "best": found.best.score}

    def lines(self) -> list[str]:
        """Return the score of the ensemble and of its best member, a table of the members, and what is optimistic."""
        found, label = self.found, metric_label(self.found.metric)
        head = f"{found.study}: {found.title}: {label} {found.score:.4f}"
        chosen = (
            f"{found.picks} pick{'s' if found.picks > 1 else ''} from {found.candidates} trials with stored weights"
        )
        alone = f"the best member alone, trial {found.best.trial}, has {found.best.score:.4f}"
        if len(found.members) == 1:
            alone = f"no ensemble is better than trial {found.best.trial} alone"
        rows = [("trial", "weight", f"{label} alone", "epochs")]
        rows += [
            (str(each.trial), f"{found.weight(each):.3f}", f"{each.score:.4f}", str(each.epochs))
            for each in found.members
        ]
        return [f"{head}, {chosen}; {alone}", *columns(rows).splitlines(), *self._optimism()]

    def _optimism(self) -> list[str]:
        found, label = self.found, metric_label(self.found.metric)
        lines = [f"{found.score:.4f} is optimistic: the ensemble was selected on these {found.validation:,} examples"]
        if (halves := found.halves) is not None:
            lines.append(
                f"selected on one half of them and scored on the other: ensemble {label} {halves.ensemble:.4f}, best "
                f"member {halves.best:.4f} (means of {halves.halves} halves)"
            )
        return [*lines, f"to measure it on fresh seeds: {hpo_command('confirm', found.study, '--ensemble')}"]
