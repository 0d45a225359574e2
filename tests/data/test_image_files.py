"""Image files: every pixel is decoded without loss, or an error names the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpo.data.user.image_files import decode_images
from hpo.errors import DataError

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 9
COLOURED = np.stack([GREY, GREY[::-1], 255 - GREY], 2)


def saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow cannot write in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(pixels: np.ndarray, **tags: int) -> bytes:
    """Return a TIFF of one strip; `extra` describes channels after the third, `sample` is the number format."""
    height, width, channels = pixels.shape
    kind = 2 if channels > 2 else 1
    fields = {256: width, 257: height, 258: pixels.itemsize * 8, 259: 1, 262: kind, 273: 8, 277: channels, 278: height}
    fields |= {279: pixels.nbytes, **({338: tags["extra"]} if "extra" in tags else {}), 339: tags.get("sample", 1)}
    body, entries = pixels.tobytes(), b""
    for tag, value in fields.items():
        count = channels if tag in (258, 339) else 1
        if count > 2:  # which do not fit into the entry
            at, body = 8 + len(body), body + struct.pack(f"<{count}H", *[value] * count)
            entries += struct.pack("<HHII", tag, 3, count, at)
        else:
            entries += struct.pack("<HHIHH", tag, 3, count, value, value if count > 1 else 0)
    ifd = struct.pack("<H", len(fields)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + ifd


def written(folder: Path, *contents: bytes) -> list[Path]:
    files = [folder / f"{number}.img" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files


def frames(kind: str, **options: Any) -> bytes:
    return saved(COLOURED, kind, save_all=True, append_images=[Image.fromarray(COLOURED[::-1])], **options)


OPAQUE = np.dstack([COLOURED, np.full((4, 5), 255, np.uint8)])
HALF = np.dstack([COLOURED, GREY])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_every_format_returns_the_written_pixels(kind: str, tmp_path: Path) -> None:
    found = decode_images(written(tmp_path, saved(COLOURED, kind, **({"lossless": True} if kind == "WEBP" else {}))))
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), COLOURED)
    np.testing.assert_array_equal(
        decode_images(written(tmp_path, tiff(GREY[..., None]), saved(GREY, "PNG")))[:, 0], [GREY] * 2
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png(COLOURED.astype(np.uint16), 2), r"more than 8 bits \(mode RGB\); save such images as floats in an .npz"),
        (png(OPAQUE.astype(np.uint16), 6), r"more than 8 bits \(mode RGBA\)"),
        (png(OPAQUE[..., 2:].astype(np.uint16), 4), "more than 8 bits"),
        (saved(GREY.astype(np.uint16), "PNG"), r"more than 8 bits \(mode I;16\)"),
        (saved(GREY.astype(np.float32), "TIFF"), r"more than 8 bits \(mode F\)"),
        (tiff(COLOURED.astype(np.uint16)), r"more than 8 bits \(mode RGB\)"),
        (tiff(GREY[..., None], sample=2), "more than 8 bits"),  # signed, and read as if it were not
        (tiff(OPAQUE, extra=0), "channels besides colour and transparency"),
        (b"P6 5 4 65535\n" + COLOURED.astype(">u2").tobytes(), r"more than 8 bits \(mode RGB\)"),
        (frames("GIF"), "2 frames; save each frame as an image"),
        (frames("PNG"), "2 frames"),
        (frames("TIFF"), "2 frames"),
        (frames("WEBP"), "2 frames"),
        (saved(HALF, "PNG"), "transparent pixels; save it on a background"),
        (saved(HALF, "WEBP"), "transparent pixels"),
        (saved(GREY, "PNG", transparency=9), "transparent pixels"),
        (saved(np.dstack([GREY, GREY]), "PNG"), "transparent pixels"),
    ],
)
def test_content_beyond_8_bits_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    files = written(tmp_path, saved(COLOURED, "PNG"), content)
    with pytest.raises(DataError, match=rf"^{files[1]}: has .*{said}") as caught:
        decode_images(files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_colours_that_need_a_profile_are_refused(mode: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, "TIFF")
    files = written(tmp_path, file.getvalue())
    with pytest.raises(DataError, match=f"has pixels of mode {mode}; convert it to RGB or grey"):
        decode_images(files)


def test_unused_transparency_is_ignored(tmp_path: Path) -> None:
    palette = io.BytesIO()
    Image.fromarray(COLOURED).quantize(64).save(palette, "PNG", transparency=255)
    found = decode_images(written(tmp_path, saved(OPAQUE, "PNG"), palette.getvalue()))
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), COLOURED)
    assert found.shape == (2, 3, 4, 5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_rotated_by_their_exif_orientation(kind: str, tmp_path: Path) -> None:
    turned = {1: GREY, 3: GREY[::-1, ::-1], 2: GREY[:, ::-1], 6: np.rot90(GREY, -1), 8: np.rot90(GREY)}
    for orientation, seen in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
        file = written(tmp_path, saved(GREY, kind, exif=exif, **options))
        found = decode_images(file)[0, 0]
        np.testing.assert_allclose(found, seen, atol=3 if kind == "JPEG" else 0)  # which is never exact
    files = written(tmp_path, saved(GREY, kind, exif=exif, **options), saved(np.rot90(GREY), "PNG"))
    assert decode_images(files).shape[2:] == (5, 4)
    files = written(tmp_path, saved(GREY, kind, exif=exif, **options), saved(GREY, "PNG"))
    with pytest.raises(DataError, match=rf"{files[1]}: has 5 x 4 pixels, {files[0]} has 4 x 5; bring all to one size"):
        decode_images(files)


def test_previews_of_a_camera_are_not_frames(tmp_path: Path) -> None:
    found = decode_images(written(tmp_path, frames("MPO", quality=100)))
    np.testing.assert_allclose(
        found[0].transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(saved(COLOURED, "JPEG", quality=100))))
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, beside its error
def test_a_truncated_file_is_refused_or_complete(kind: str, tmp_path: Path) -> None:
    content = saved(COLOURED, kind)
    whole, refused = decode_images(written(tmp_path, content)), 0
    for size in range(0, len(content), 1 + len(content) // 60):
        try:
            found = decode_images(written(tmp_path, content[:size]))
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, whole)
    assert refused > 20


def test_other_formats_are_not_read(tmp_path: Path) -> None:
    files = written(tmp_path, saved(COLOURED, "ICO"))
    with pytest.raises(
        DataError, match=r"is not an image \(PNG, JPEG, GIF, BMP, TIFF, WebP, PPM\), or is damaged; rem"
    ):
        decode_images(files)


def test_channels_depend_on_the_caller_or_on_all_images(tmp_path: Path) -> None:
    grey, both = written(tmp_path, saved(GREY, "PNG")), written(tmp_path, saved(GREY, "PNG"), saved(COLOURED, "PNG"))
    np.testing.assert_array_equal(decode_images(grey, coloured=True)[0], [GREY] * 3)
    assert decode_images(grey, coloured=False).shape == decode_images(grey).shape == (1, 1, 4, 5)
    assert decode_images(both).shape == (2, 3, 4, 5)
    with pytest.raises(DataError, match=rf"{both[1]}: has colours, but all training images are grey"):
        decode_images(both, coloured=False)
