"""What becomes of a signal before any training: the activations of each hidden layer, for each choice of a study.

    python demos/activations.py studies/weight-init.toml --output activations.png

A row a configuration, a column a layer, a histogram each over 1,000 training images, and the standard deviation above
it. The networks are those that the study's first seed begins with, so the file must search choices only. The output is
HTML or PNG, by its name; PNG needs an installed Chrome or Chromium.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from hpo.data import load_split
from hpo.errors import HpoError
from hpo.results.figures.png import pngs
from hpo.results.figures.style import BLUE, TEMPLATE
from hpo.search.points import trial_seed
from hpo.search.space import combination, config_of, size
from hpo.studyfile import NetworkSettings, Study, read_study
from hpo.training.images import to_device
from hpo.training.networks import ACTIVATIONS, build

IMAGES = 1000
MOST_ROWS = 8
BINS = np.linspace(0.0, 1.0, 31)
"""Of rectified activations of images between 0 and 1; what lies beyond is counted in the last bin."""


@torch.no_grad()
def activations(network: nn.Module, settings: NetworkSettings, images: Tensor) -> list[Tensor]:
    """Return what each activation of the network gives out for the images, in the order of the layers."""
    found: list[Tensor] = []
    for layer in network.modules():
        if isinstance(layer, ACTIVATIONS[settings.activation]):
            layer.register_forward_hook(lambda module, given, out: found.append(out))
    network.eval()(images)
    return found


def configurations(study: Study) -> list[tuple[str, NetworkSettings]]:
    """Return each configuration of the study in words, and its network."""
    count = size(study)
    if math.isinf(count) or count > MOST_ROWS:
        raise HpoError(f"{study.source}: searches {count:g} configurations; at most {MOST_ROWS} can be drawn")
    found = []
    for values in (combination(study, index) for index in range(int(count))):
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()) or study.name
        found.append((words, config_of(study, values).network))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file")
    parser.add_argument("--output", type=Path, default=Path("activations.html"), help="an .html or .png file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `hpo launch`")
    given = parser.parse_args()
    study = read_study(given.study, given.set)
    split = to_device(load_split(study), study.data.split_seed, torch.device("cpu"))
    images = split.train[:IMAGES]
    rows = [
        (words, activations(build(network, split.shape, split.classes, trial_seed(study, 0)), network, images))
        for words, network in configurations(study)
    ]
    layers = max(len(outs) for _, outs in rows)
    titles = [f"layer {number + 1}: sd {out.std():.2g}" for _, outs in rows for number, out in enumerate(outs)]
    figure = make_subplots(len(rows), layers, shared_xaxes=True, shared_yaxes=True, subplot_titles=titles)
    for row, (words, outs) in enumerate(rows, start=1):
        for column, out in enumerate(outs, start=1):
            shares = np.histogram(np.clip(out.numpy(), BINS[0], BINS[-1]), BINS)[0] / out.numel()
            figure.add_bar(x=BINS[:-1], y=shares, offset=0, width=BINS[1], marker_color=BLUE, row=row, col=column)
        figure.update_yaxes(title_text=words, row=row, col=1)
    figure.update_yaxes(range=[0, 1])
    title = f"{study.name}: share of activations before training"
    figure.update_layout(template=TEMPLATE, title=title, showlegend=False, height=90 + 190 * len(rows), width=1100)
    if given.output.suffix == ".png":
        given.output.write_bytes(pngs([figure])[0])
    else:
        figure.write_html(given.output)


if __name__ == "__main__":
    try:
        main()
    except HpoError as error:
        sys.exit(str(error))
