"""The commands after a search: the one look at the test set, and what the tested network says of other images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.app import Device, Name, StorageUrl, app, storage_at
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
        from json import dumps

        from hpo.results.sealed import Wanted
        from hpo.results.sealed import look as look_once
        from hpo.results.sealed_result import lines

        wanted = Wanted(again, from_checkpoint, trial, subnetworks, device, output)
        result, folder = look_once(
            storage_at(storage), name, wanted, interruption.stop, lambda text: print(text, file=sys.stderr, flush=True)
        )
    if json:
        print(dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(lines(result, folder)))


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
    from hpo.results.predicting import predictions
    from hpo.results.writing import write

    text = predictions(folder, images, device)
    if output is None:
        sys.stdout.write(text)
    else:
        write(text, output)
