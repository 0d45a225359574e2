"""The commands after a search: the one look at the test set, and what the tested network says of other images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hpo
from hpo.cli.app import Device, Name, StorageUrl, app, put, show
from hpo.cli.interruption import stop_on_signals


@app.command("test")
def look(
    name: Name,
    again: Annotated[bool, typer.Option("--again", help="Look although the study has seen its test set.")] = False,
    from_checkpoint: Annotated[
        bool, typer.Option("--from-checkpoint", help="Test the weights that the search has kept, and train nothing.")
    ] = False,
    trial: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="This trial's configuration [default: the chosen one]")
    ] = None,
    subnetworks: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Also average so many networks of random dropout.")
    ] = None,
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="A new folder [default: NAME-test]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write the result to stdout as one JSON object.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Look at the sealed test set, once.

    The chosen configuration is trained on training and validation images, and tested. Its folder holds the result, the
    confusion matrix, and the weights for `hpo predict`.
    """
    with stop_on_signals() as interruption:
        found = hpo.load(name, storage=storage).test(
            again=again,
            from_checkpoint=from_checkpoint,
            trial=trial,
            subnetworks=subnetworks,
            device=device,
            folder=output,
            stop=interruption.stop,
        )
    show(found, json)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `hpo test` wrote.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES.npy", help="Images, [N, H, W] or [N, C, H, W].")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file, not stdout.")] = None,
    device: Device = "auto",
) -> None:
    """Classify images with a tested network.

    Images are uint8 as in the data set, or floats from 0, black, to 1, white. The answer is CSV: image, class,
    probability.
    """
    put(str(hpo.predict(folder, images, device=device)), output)
