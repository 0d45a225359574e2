"""Decode image files of one size to an array of bytes, rotated by their EXIF orientation and without loss.

A file whose content does not fit into one grey or three colour bytes a pixel is a DataError that names it: more than 8
bits a channel, several frames, transparent pixels, other channels, CMYK. So is a file that is not an image, is damaged,
or has another size. All headers are checked before any image is decoded, and each image is decoded once. Pillow is
imported only to read images; the accepted formats are those whose depth and frames it reports.
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


def decode_images(files: Sequence[Path], coloured: bool | None = None) -> NDArray[np.uint8]:
    """Return images as [N, C, H, W], with three channels if `coloured`; None: if any of them has colours."""
    found = _first_coloured(files)
    if coloured is False and found is not None:
        raise DataError(f"{found}: has colours, but all training images are grey; convert it to grey")
    mode, channels = ("RGB", 3) if coloured or found is not None else ("L", 1)
    pixels = np.empty(0, np.uint8)
    for index, file in enumerate(files):
        with _opened(file) as image:
            decode_images = np.atleast_3d(np.asarray(_oriented(image, file).convert(mode)))
        if index == 0:
            pixels = np.empty((len(files), channels, *decode_images.shape[:2]), np.uint8)
        if decode_images.shape[:2] != pixels.shape[2:]:
            raise _other_size(file, decode_images.shape[1::-1], files[0], pixels.shape[:1:-1])
        pixels[index] = decode_images.transpose(2, 0, 1)
    return pixels


def _first_coloured(files: Sequence[Path]) -> Path | None:
    """Return the first file with colours; raise DataError for the first header of an unusable file."""
    coloured, first = None, (0, 0)
    for file in files:
        with _opened(file) as image:
            first = first if any(first) else image.size
            if sorted(image.size) != sorted(first):  # one of them may be rotated by its EXIF orientation
                raise _other_size(file, image.size, files[0], first)
            if problem := _not_8_bit(image):
                raise DataError(f"{file}: {problem}")
            if image.mode in _COLOURED:
                coloured = coloured or file
    return coloured


def _other_size(file: Path, size: Sequence[int], first: Path, wanted: Sequence[int]) -> DataError:
    pixels = f"{size[0]} x {size[1]} pixels"
    return DataError(f"{file}: has {pixels}, {first} has {wanted[0]} x {wanted[1]}; bring all to one size")


def _not_8_bit(image: ImageFile) -> str:
    """Return a message about content that Pillow would drop silently; "" for none."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG with previews after the picture
        return f"has {frames} frames; save each frame as an image"
    tags = getattr(image, "tag_v2", {})
    if 0 in tags.get(_EXTRA_SAMPLES, ()):
        return "has channels besides colour and transparency; save such images in an .npz file"
    coding = image.tile[0].args if image.tile else None  # of some formats: the coding of the pixels only
    wide = {
        "PNG": isinstance(coding, str) and coding.endswith(";16B"),
        "PPM": isinstance(coding, tuple) and isinstance(coding[-1], int) and coding[-1] > 255,  # the value of white
        "TIFF": max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8 or {*tags.get(_SAMPLE_FORMAT, (1,))} != {1},
    }
    if image.mode.startswith(("I", "F")) or wide.get(image.format or "", False):
        return f"has pixels of more than 8 bits (mode {image.mode}); save such images as floats in an .npz file"
    if image.mode not in (*_GREY, *_COLOURED):
        return f"has pixels of mode {image.mode}; convert it to RGB or grey"
    return ""


def _oriented(image: Image, file: Path) -> Image:
    """Return the image in its EXIF orientation, without an unused transparency channel."""
    from PIL import ImageOps

    oriented = ImageOps.exif_transpose(image)
    if oriented.has_transparency_data:
        oriented = oriented.convert("RGBA")
        if oriented.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{file}: has transparent pixels; save it on a background")
    return oriented


@contextmanager
def _opened(file: Path) -> Iterator[ImageFile]:
    """Open an image; every failure to read or decode it is a DataError that names it."""
    from PIL import Image, UnidentifiedImageError

    try:
        # Given a file name, Pillow maps the pixels into memory and ignores the rotation of a TIFF.
        with (
            open_regular_file(file) as content,
            Image.open(content, formats=[each.upper() for each in FORMATS]) as image,
        ):
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{file}: is not an image ({', '.join(FORMATS)}), or is damaged; remove it") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: is a damaged image ({error})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
