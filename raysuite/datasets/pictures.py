"""The one decoder of pictures, for every layout: a file or its bytes -> what a model's VAE is given, or the reason why not.

What a viewer would show is what is learned:

- of an animation, or of several pages, the first picture;
- upright: the orientation that EXIF or XMP states is applied before anything is cut. One that cannot be read is none;
- on white, where it is transparent, whether by an alpha channel, by a palette or by a colour that stands for it;
- 16 bits become 8 by their high byte, as Pillow reads 16-bit colour: right for what was scaled up by 256 and by 257;
- floating-point values are black at 0 and white at 1. Pictures with others, and 32-bit integers, have no scale that is known,
  and are set aside;
- CMYK, palettes, grey, and black and white become RGB as Pillow converts them; colour profiles are not applied;
- a picture of more than `PIXELS` is set aside before one of them is decoded.

Then the middle, in the model's proportions, is scaled with Lanczos's filter.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from raysuite.datasets.sources import Pictures, Unusable
from raysuite.errors import UserError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow reads by itself. For some others it starts programs, which no file of unknown origin should make it do."""
PIXELS = 89_478_485
"""At most so many in a picture: Pillow's own limit, 360 MB in its memory, and twice that where one is converted."""
DECODER = 2
"""Goes up with every change that lets some picture come out otherwise, so that no set is half of one kind and half of another."""
WHITE = 255
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, and what sets each of them upright; 1 is upright."""
BROKEN = (OSError, SyntaxError, ValueError, RuntimeError)
"""What Pillow and the libraries below it raise for a file that is damaged or was cut short."""
ELSEWHERE = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
"""Faults of a disk, a network or a process, not of a picture: another try may find it whole."""


def decode(image: bytes | Path, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture in the model's shape, uint8 (H, W, 3).

    Args:
        image: a file, or what is in one.
        size: height and width that are wanted, pixels.

    Raises:
        Unusable: it cannot be read, or not with certainty. The message is one of a few reasons, and names no file.
        UserError: not the picture is at fault, but what it is on.
    """
    height, width = size
    try:
        with io.BytesIO(image) if isinstance(image, bytes) else image.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on what it reads nevertheless
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not stream.read(1):
                raise Unusable("empty image file")
            with Image.open(stream, formats=FORMATS) as opened:
                if opened.width * opened.height > PIXELS:
                    raise Image.DecompressionBombError
                opened.load()
                turn = _turn(opened)
                picture = _in_colour(opened)
                upright = picture if turn is None else picture.transpose(turn)
        return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Unusable(f"image of more than {PIXELS:,} pixels") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unusable("missing image file") from error
    except UnidentifiedImageError as error:
        raise Unusable("unreadable image") from error
    except BROKEN as error:
        code = error.errno if isinstance(error, OSError) else None  # none of Pillow's own have one
        if code in ELSEWHERE:
            raise UserError(
                f"expected to read the picture {image!s:.200}, got {os.strerror(code)}: repeat the command, it goes on where it was "
                "stopped"
            ) from error
        raise Unusable("broken image" if code is None else "unreadable image") from error


def of_folder(folder: Path, size: tuple[int, int]) -> np.ndarray:
    """All pictures in a folder and in its folders, in alphabetical order, as a model would be given them, uint8 (N, H, W, 3).

    Args:
        folder: of PNG, JPEG and WebP files.
        size: height and width that are wanted, pixels.

    Raises:
        UserError: there are none, or one cannot be used.
    """
    found = []
    for file in Pictures([str(folder)], split="").read(folder):
        try:
            found.append(decode(file, size))
        except Unusable as reason:
            raise UserError(
                f"expected pictures in {folder}, {file.name} is none to use ({reason}): remove it"
            ) from reason
    if not found:
        raise UserError(
            f"expected pictures in {folder} ({', '.join(Pictures.suffixes)}), found none: name another folder"
        )
    return np.stack(found)


def _turn(opened: ImageFile.ImageFile) -> Image.Transpose | None:
    """What sets a loaded picture upright. TIFF's orientation is applied by Pillow as it loads."""
    try:
        return TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN:
        return None


def _in_colour(opened: ImageFile.ImageFile) -> Image.Image:
    """RGB, nothing of it transparent."""
    if opened.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(opened)).convert("RGB")
    if opened.has_transparency_data:
        picture = opened if opened.mode == "RGBA" else opened.convert("RGBA")
        page = Image.new("RGB", opened.size, (WHITE, WHITE, WHITE))
        page.paste(picture, mask=picture)
        return page
    return opened if opened.mode == "RGB" else opened.convert("RGB")


def _grey(opened: ImageFile.ImageFile) -> np.ndarray:
    """One channel of more than 8 bits as uint8 (H, W)."""
    if opened.mode == "I" and opened.format != "PPM":  # in which Pillow scales everything to 16 bits
        raise Unusable("image of 32-bit integers, whose scale is not known")
    value = np.asarray(opened)
    tags = opened.tag_v2 if isinstance(opened, TiffImagePlugin.TiffImageFile) else {}
    if opened.mode == "F":
        if not (value.min() >= 0 and value.max() <= 1):  # so that NaN is refused
            raise Unusable("image of floating-point values outside of 0 to 1, whose scale is not known")
        grey = np.rint(255 * value).astype(np.uint8)
    else:
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]  # TIFF has 12 of them, too
        grey = (value >> (bits - 8)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white
        grey = 255 - grey
    transparent = opened.info.get("transparency")
    return grey if transparent is None else np.where(value == transparent, np.uint8(WHITE), grey)
