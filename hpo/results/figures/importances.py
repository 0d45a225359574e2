"""Importance of each parameter by PED-ANOVA, as Optuna computes it.

PED-ANOVA compares the parameters of the best tenth of the completed trials with those of all; it is fast for long
studies too. With too few trials the figure is a message.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from hpo.results.figures.source import Source, label, lies_in, space
from hpo.results.figures.style import BLUE, message, new_figure, plain, short
from hpo.results.ranking import score
from hpo.search.sampling.in_memory_study import InMemoryStudy, in_memory_trial
from hpo.training.global_locks import WARNINGS_LOCK

BEST_FRACTION = 0.1
FEWEST = 20
"""The number of completed trials from which importances are drawn; of fewer, the best tenth is one or two trials."""


def importances(source: Source) -> go.Figure:
    """Return a bar for each parameter, the most important one at the top."""
    title = f"{plain(source.name)}: importance of the parameters"
    parts = parameter_importances(source)
    if isinstance(parts, str):
        return message(title, parts)
    names = list(reversed(parts))
    values = short((parts[name] for name in names), 3)
    figure = new_figure(f"{title} for the best tenth of the trials")
    figure.add_bar(
        x=values,
        y=[plain(label(name)) for name in names],
        orientation="h",
        marker={"color": BLUE},
        text=[f"{value:.2f}" for value in values],
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure.update_yaxes(type="category")
    return figure.update_xaxes(title={"text": "importance"}, range=[0, 1])


def parameter_importances(source: Source) -> dict[str, float] | str:
    """Return the importance of each searched parameter, the largest first, or the reason why there is none.

    Trials without all searched parameters are left out: they are from before a change of the study. Conditional
    parameters may be missing.
    """
    completed = source.ended(TrialState.COMPLETE)
    searched = {name: each for name, each in space(completed).items() if not each.single()}
    completed = [trial for trial in completed if lies_in(trial, searched, source.conditional)]
    if reason := _no_importances(source, searched, completed):
        return reason
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # imports scikit-learn

    mirror = InMemoryStudy()
    study = optuna.create_study(direction="maximize" if source.maximized else "minimize", storage=mirror)
    for number, trial in enumerate(completed):
        params = {name: value for name, value in trial.params.items() if name in searched}
        mirror.put(in_memory_trial(number, TrialState.COMPLETE, params, searched, [score(trial)]))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_FRACTION)
    with WARNINGS_LOCK, warnings.catch_warnings():
        # Of a value of a condition that few trials have: their parameter's importance is then uncertain.
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        return get_param_importances(study, evaluator=evaluator, params=list(searched))


def _no_importances(source: Source, searched: Collection[str], completed: Sequence[FrozenTrial]) -> str | None:
    """Return the reason why there are no importances, as a sentence; None where there are."""
    if not searched:
        return "No parameter is searched."
    if len(searched) == 1:
        return f"Only {plain(label(next(iter(searched))))} is searched: there is nothing to compare it with."
    if len(completed) < FEWEST:
        return f"Importances take {FEWEST} completed trials; there are {len(completed)}."
    ranked = sorted(map(score, completed), reverse=source.maximized)
    if ranked[math.ceil(BEST_FRACTION * len(ranked)) - 1] == ranked[-1]:
        return "Too many trials have the same score to tell a best tenth."
    return None
