"""One decoder for whatever is called a picture: each kind has the right pixel, or is set aside with the right reason."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from raysuite.datasets.pictures import PIXELS, decode
from raysuite.datasets.sources import Unusable
from raysuite.errors import UserError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def saved(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def row(*pixels: Any, dtype: Any = np.uint8) -> np.ndarray:
    """A picture of one row."""
    return np.array([pixels], dtype)


def with_mode(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for place, value in enumerate(pixels):
        image.putpixel((place, 0), value)
    return image


def palette(*indices: int) -> Image.Image:
    """Indices of red, green and blue."""
    image = with_mode("P", *indices)
    image.putpalette([*RED, *GREEN, *BLUE])
    return image


def tiff(bits: int, strip: bytes, *, width: int, more: dict[int, int] | None = None) -> bytes:
    """One row by hand, of grey unless further tags say otherwise: Pillow does not write these."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(strip), **(more or {})}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    padded = strip + b"\0" * (len(strip) % 2)
    return struct.pack("<2sHI", b"II", 42, 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


def vast() -> bytes:
    """A whole PNG of 20,000 x 20,000 black and white pixels: 50 KB of file, 400 MB in memory."""
    side = 20_000
    packed = zlib.compress(bytes(side * (1 + side // 8)))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + content


def animated(form: str, **options: Any) -> bytes:
    first, second = (np.full((8, 8, 3), colour, np.uint8) for colour in (GREEN, BLUE))
    return saved(first, form, save_all=True, append_images=[Image.fromarray(second)], **options)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# half transparent on white: 128 / 255 of the value and 127 of white; the hidden colour of a transparent pixel is not seen
PIXELS_OF: dict[str, tuple[Callable[[], bytes], list[tuple[int, int, int]]]] = {
    "RGB": (lambda: saved(row(RED, (1, 2, 3))), [RED, (1, 2, 3)]),
    "L": (lambda: saved(row(0, 77, 255)), [BLACK, (77, 77, 77), WHITE]),
    "RGBA": (
        lambda: saved(row((200, 40, 60, 255), (0, 100, 200, 128), (10, 20, 30, 0))),
        [(200, 40, 60), (127, 177, 227), WHITE],
    ),
    "RGBA webp": (lambda: saved(row((10, 20, 30, 0), (*RED, 255)), "WEBP", lossless=True), [WHITE, RED]),
    "RGBA premultiplied": (
        lambda: tiff(8, bytes([0, 50, 100, 128, *RED, 255]), width=2, more={262: 2, 277: 4, 338: 1}),
        [(127, 177, 227), RED],
    ),
    "LA": (lambda: saved(with_mode("LA", (50, 255), (100, 128), (50, 0))), [(50, 50, 50), (177, 177, 177), WHITE]),
    "palette": (lambda: saved(palette(2, 1, 0)), [BLUE, GREEN, RED]),
    "palette, one transparent": (lambda: saved(palette(0, 1, 2), transparency=1), [RED, WHITE, BLUE]),
    "palette, alphas": (
        lambda: saved(palette(0, 1, 2), transparency=bytes([0, 255, 128])),
        [WHITE, GREEN, (127, 127, 255)],
    ),
    "gif, one transparent": (lambda: saved(palette(0, 1, 2), "GIF", transparency=1), [RED, WHITE, BLUE]),
    "RGB, one transparent": (lambda: saved(row(RED, (1, 2, 3)), transparency=(1, 2, 3)), [RED, WHITE]),
    "L, one transparent": (lambda: saved(row(7, 0), transparency=0), [(7, 7, 7), WHITE]),
    "CMYK": (lambda: saved(with_mode("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"), [RED, BLACK]),
    "1": (lambda: saved(np.array([[True, False]])), [WHITE, BLACK]),
    "1, one transparent": (lambda: saved(np.array([[True, False]]), transparency=0), [WHITE, WHITE]),
    "I;16": (
        lambda: saved(row(0, 100 * 257, 200 * 256, 65535, dtype=np.uint16)),
        [BLACK, (100,) * 3, (200,) * 3, WHITE],
    ),
    "I;16, one transparent": (
        lambda: saved(row(100 * 257, 0, dtype=np.uint16), transparency=0),
        [(100, 100, 100), WHITE],
    ),
    "I;16 tiff": (lambda: saved(row(0, 100 * 257, dtype=np.uint16), "TIFF"), [BLACK, (100,) * 3]),
    "I;16 tiff, big-endian": (lambda: saved(with_mode("I;16B", 0, 100 * 257), "TIFF"), [BLACK, (100,) * 3]),
    "I;16 tiff, 0 is white": (
        lambda: tiff(16, struct.pack("<3H", 0, 100 * 257, 65535), width=3, more={262: 0}),
        [WHITE, (155,) * 3, BLACK],
    ),
    "I;16 jpeg 2000": (lambda: saved(row(0, 100 * 257, dtype=np.uint16), "JPEG2000"), [BLACK, (100,) * 3]),
    "12 bits": (lambda: tiff(12, bytes([0xFF, 0xF6, 0x40]), width=2), [WHITE, (100, 100, 100)]),
    "pgm of 4,096 values": (lambda: b"P5 3 1 4095 " + struct.pack(">3H", 0, 1606, 4095), [BLACK, (100,) * 3, WHITE]),
    "F": (lambda: saved(row(0, 0.4, 1, dtype=np.float32), "TIFF"), [BLACK, (102, 102, 102), WHITE]),
    "animated gif": (lambda: animated("GIF"), [GREEN]),
    "animated webp": (lambda: animated("WEBP", lossless=True), [GREEN]),
    "animated png": (lambda: animated("PNG"), [GREEN]),
    "pages": (lambda: animated("TIFF"), [GREEN]),
}


@pytest.mark.parametrize("kind", PIXELS_OF)
def test_right_pixels(kind: str) -> None:
    content, wanted = PIXELS_OF[kind]
    with Image.open(io.BytesIO(content())) as opened:
        size = opened.size
    found = decode(content(), (size[1], size[0]))
    assert found.dtype == np.uint8 and found.shape == (size[1], size[0], 3)
    assert [tuple(pixel) for pixel in found[0, : len(wanted)].tolist()] == wanted


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("AVIF", {}),
        ("JPEG CMYK", {}),
        ("WEBP", {}),
        ("JPEG2000", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("MPO", {}),
    ],
)
def test_formats_that_lose_a_little(form: str, options: dict[str, Any]) -> None:
    plain = Image.new("RGB", (16, 16), (200, 60, 20))
    content = saved(plain.convert("CMYK"), "JPEG") if form == "JPEG CMYK" else saved(plain, form, **options)
    assert np.abs(decode(content, (16, 16)).astype(int) - (200, 60, 20)).max() <= 4


HEAD = saved(noise(24, 24))[:400]
REASONS: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated png": (lambda: HEAD, "broken image"),
    "truncated jpeg": (lambda: saved(noise(64, 64), "JPEG")[:-400], "broken image"),
    "truncated webp": (lambda: saved(noise(64, 64), "WEBP")[:-400], "broken image"),
    "truncated avif": (lambda: saved(noise(64, 64), "AVIF")[:-400], "unreadable image"),
    "truncated gif": (lambda: saved(noise(64, 64), "GIF")[:-400], "broken image"),
    "a header alone": (lambda: HEAD[:8], "unreadable image"),
    "zero bytes": (lambda: b"", "empty image file"),
    "a web page": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "unreadable image"),
    "text for a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "unreadable image"),
    "20,000 x 20,000": (vast, "image of more than 89,478,485 pixels"),
    "too bright": (
        lambda: saved(row(0, 2, dtype=np.float32), "TIFF"),
        "image of floating-point values outside of 0 to 1, whose scale is not known",
    ),
    "not a number": (
        lambda: saved(row(0, np.nan, dtype=np.float32), "TIFF"),
        "image of floating-point values outside of 0 to 1, whose scale is not known",
    ),
    "32-bit integers": (
        lambda: saved(row(0, 70_000, dtype=np.int32), "TIFF"),
        "image of 32-bit integers, whose scale is not known",
    ),
}


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_cannot_be_read_has_its_reason(kind: str, on_disk: bool, tmp_path: Path) -> None:
    content, reason = REASONS[kind]
    file = tmp_path / "picture.jpg"
    file.write_bytes(content())
    with pytest.raises(Unusable) as raised:
        decode(file if on_disk else content(), (8, 8))
    assert str(raised.value) == reason


def test_paths_without_a_picture(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "no.png", "missing image file"),
        (tmp_path / "file" / "no.png", "missing image file"),
        (tmp_path, "unreadable image"),
        (tmp_path / ("x" * 5000), "unreadable image"),
    ):
        with pytest.raises(Unusable) as raised:
            decode(path, (8, 8))
        assert str(raised.value) == reason


def test_not_a_pixel_of_a_vast_picture_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever limit another library has set."""

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for limit in (PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(Unusable, match="image of more than"):
            decode(vast(), (8, 8))


def test_a_fault_of_the_disk_is_not_the_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def open_(self: Path, mode: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(UserError, match=r"got Input/output error: repeat the command"):
        decode(tmp_path / "a.png", (8, 8))


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as a camera stores them: EXIF states on which side of the upright picture the first row and column lie."""
    turned = upright.transpose(1, 0, 2)
    return {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_set_upright(form: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = RED, GREEN, BLUE  # and black at the lower right
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(np.ascontiguousarray(stored(upright, orientation)), form, exif=exif)
    found = decode(content, (16, 32))
    corners = found[[4, 4, 12, 12], [4, 28, 4, 28]].astype(int)
    assert np.abs(corners - [RED, GREEN, BLUE, BLACK]).max() < 32


@pytest.mark.parametrize("exif", [b"Exif\0\0 neither II nor MM", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"])
def test_an_orientation_that_cannot_be_read_is_none(exif: bytes) -> None:
    pixels = noise(8, 8)
    assert np.array_equal(decode(saved(pixels, exif=exif), (8, 8)), pixels)
    assert np.array_equal(decode(saved(pixels, exif={}), (8, 8)), pixels)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(64, 64), (97, 31), (16, 300)])
def test_plain_pictures_are_only_cut_and_scaled(form: str, shape: tuple[int, int]) -> None:
    """What Pillow says of them and nothing else, to the bit."""
    content = saved(noise(*shape), form)
    plain = ImageOps.fit(Image.open(io.BytesIO(content)), (48, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(content, (32, 48)), np.asarray(plain))
