"""Image files of one size as an array of bytes, as people see them: turned as the camera noted, and nothing left out.

Promises: what one grey or three coloured bytes a pixel cannot hold is a DataError that names the file: more than 8 bits
a channel, later frames, transparent pixels, other channels, CMYK. So is a file that is no image, is damaged, or has
another size. Headers are compared before any image is decoded, and each is decoded once. Pillow is imported only when
images are read; of its formats those are read whose depth and frames can be told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError
from hpo.untrusted_files import open_regular_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP", "PPM")

_GREY = ("1", "L", "LA")
_COLOURED = ("P", "PA", "RGB", "RGBA")
_DAMAGED = (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)  # Pillow raises
_BITS_PER_SAMPLE, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 338, 339  # tags of TIFF


def decoded(files: Sequence[Path], coloured: bool | None = None) -> NDArray[np.uint8]:
    """Return images as [N, C, H, W], of three channels where they are `coloured`: by default, where any of them is."""
    found = _first_coloured(files)
    if coloured is False and found is not None:
        raise DataError(f"{found}: is stored in colour, and all training images in grey; store it in grey, too")
    mode, channels = ("RGB", 3) if coloured or found is not None else ("L", 1)
    pixels = np.empty(0, np.uint8)
    for index, file in enumerate(files):
        with _opened(file) as image:
            decoded = np.atleast_3d(np.asarray(_as_seen(image, file).convert(mode)))
        if index == 0:
            pixels = np.empty((len(files), channels, *decoded.shape[:2]), np.uint8)
        if decoded.shape[:2] != pixels.shape[2:]:
            raise _other_size(file, decoded.shape[1::-1], files[0], pixels.shape[:1:-1])
        pixels[index] = decoded.transpose(2, 0, 1)
    return pixels


def _first_coloured(files: Sequence[Path]) -> Path | None:
    """Return the first file that has colours; raise DataError for one that cannot be used, as far as headers tell."""
    coloured, first = None, (0, 0)
    for file in files:
        with _opened(file) as image:
            first = first if any(first) else image.size
            if sorted(image.size) != sorted(first):  # one of them may be noted to be turned
                raise _other_size(file, image.size, files[0], first)
            if problem := _beyond_bytes(image):
                raise DataError(f"{file}: {problem}")
            if image.mode in _COLOURED:
                coloured = coloured or file
    return coloured


def _other_size(file: Path, size: Sequence[int], first: Path, wanted: Sequence[int]) -> DataError:
    pixels = f"{size[0]} x {size[1]} pixels"
    return DataError(f"{file}: has {pixels}, {first} has {wanted[0]} x {wanted[1]}; bring all to one size")


def _beyond_bytes(image: ImageFile) -> str:
    """Return what is in the file that Pillow would drop without a word; "" for nothing."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG, which has previews behind the picture
        return f"has {frames} frames; save those that are meant as images of their own"
    tags = getattr(image, "tag_v2", {})
    if 0 in tags.get(_EXTRA_SAMPLES, ()):
        return "has channels besides colour and transparency; give such images as an .npz file"
    coding = image.tile[0].args if image.tile else None  # for some formats that of the pixels alone
    wide = {
        "PNG": isinstance(coding, str) and coding.endswith(";16B"),
        "PPM": isinstance(coding, tuple) and isinstance(coding[-1], int) and coding[-1] > 255,  # what stands for white
        "TIFF": max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8 or {*tags.get(_SAMPLE_FORMAT, (1,))} != {1},
    }
    if image.mode.startswith(("I", "F")) or wide.get(image.format or "", False):
        return f"has pixels of more than 8 bits (mode {image.mode}); give such images as floats in an .npz file"
    if image.mode not in (*_GREY, *_COLOURED):
        return f"has pixels of mode {image.mode}; convert it to RGB or grey"
    return ""


def _as_seen(image: Image, file: Path) -> Image:
    """Return the image turned as it is noted to be, without the channel of a transparency that it does not use."""
    from PIL import ImageOps

    seen = ImageOps.exif_transpose(image)
    if seen.has_transparency_data:
        seen = seen.convert("RGBA")
        if seen.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{file}: has transparent pixels; put it on a background")
    return seen


@contextmanager
def _opened(file: Path) -> Iterator[ImageFile]:
    """Open an image; every failure to read or decode it is a DataError naming it."""
    from PIL import Image, UnidentifiedImageError

    try:
        # Of a file by its name Pillow maps the pixels into memory, and for a TIFF that is turned, as if it were not.
        with (
            open_regular_file(file) as content,
            Image.open(content, formats=[each.upper() for each in FORMATS]) as image,
        ):
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{file}: is no image ({', '.join(FORMATS)}), or a damaged one; take it away") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: is a damaged image ({error})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
