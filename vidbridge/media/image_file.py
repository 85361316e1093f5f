"""One image file, opened with care: its size, and its pixels as a viewer shows them."""

from __future__ import annotations

import struct
import zlib
from contextlib import contextmanager
from typing import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from vidbridge.errors import VideoError
from vidbridge.media.container import check_file
from vidbridge.media.kinds import kind_of
from vidbridge.media.upright import on_white

# No others: some make Pillow start other programs (EPS), or are pages of text.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
READ = "jpg, png, webp, bmp, gif, tiff and ppm files"
MAX_PIXELS = 2**26  # 8192 x 8192; a small file can ask for much more
TURNED = (5, 6, 7, 8)  # orientations of EXIF that exchange height and width
# What Pillow's readers raise for a file that is cut short or makes no sense: each has its own.
_DAMAGED = (
    *(OSError, EOFError, struct.error, zlib.error),
    *(ValueError, TypeError, SyntaxError, LookupError, ArithmeticError),
)
GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # modes of pictures with more than 256 levels


def read_image(path: str) -> np.ndarray:
    """Return the pixels [H, W, 3] uint8 of an image file: RGB, upright, on white where it is transparent.

    Levels of 16 bits are divided by 257. VideoError with one of these reasons: missing, not_a_file, empty,
    not_an_image, too_large, moving (more than one picture), damaged (cut short too).
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)  # this decodes it
        mode = upright.mode
        if mode not in (*GREY, "F"):
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        pixels = np.asarray(upright)
    if mode == "F":
        raise VideoError(path, "not_an_image", "has fractions for levels: save it with 8 or 16 bits")
    if mode in GREY:
        if pixels.min() < 0 or pixels.max() >= 2**16:
            raise VideoError(path, "not_an_image", "has levels of more than 16 bits: save it with 8 or 16")
        levels = (pixels.astype(np.int64) + 128) // 257
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)
    return on_white(pixels) if pixels.shape[2] == 4 else pixels


def image_size(path: str) -> tuple[int, int]:
    """Return (height, width) as ``read_image`` gives them, by the header alone; VideoError as there."""
    with _opened(path) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(Base.Orientation) in TURNED else (height, width)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    check_file(path, "image")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                size = f"{width} x {height}"
                raise VideoError(path, "too_large", f"is {size} pixels large, at most {MAX_PIXELS} are read")
            number = getattr(image, "n_frames", 1)
            if number > 1 and image.format != "MPO":  # that is a photograph beside its preview
                told = f"holds {number} pictures: save the one that is meant; a GIF that moves can be a video"
                raise VideoError(path, "moving", told)
            yield image
    except VideoError:
        raise
    except Image.DecompressionBombError as error:
        raise VideoError(path, "too_large", f"is too large: at most {MAX_PIXELS} pixels are read") from error
    except UnidentifiedImageError as error:
        kind = kind_of(path) or "no image that can be opened"
        raise VideoError(path, "not_an_image", f"is {kind}; read are {READ}") from error
    except _DAMAGED as error:
        raise VideoError(path, "damaged", f"cannot be decoded ({error})") from error
