"""One picture or mask of any kind, from the bytes of a file to pixels of a given size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cdep_run.isic_prep.decode import PrepareError, read_mask, read_rgb

__all__ = [
    "PictureError", "draw", "fit_mask_picture", "fit_picture", "pack", "prepare", "read_mask",
    "read_picture", "unpack",
]  # fmt: skip

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""What the names of pictures end in."""

FITS = ("squash", "crop")
"""Ways to make a picture square: squashed as a whole, or the largest square in its middle."""

NEARLY_ALL = 0.95
"""A mask that covers more than this share of the picture says that nothing may matter."""

Mask = NDArray[np.bool_]
Shape = tuple[str, tuple[tuple[float, float], ...]]
"""A kind ("polygon", "rectangle" or "circle") and its points (x, y) in pixels."""


class PictureError(PrepareError):
    """A picture, a mask or a shape cannot be used."""


def read_picture(data: bytes) -> Image.Image:
    """An RGB picture, upright, from the bytes of a file; of an animation the first frame.

    CMYK, palette and grey are converted, 16 bits become 8, transparency is laid on white, an EXIF
    rotation is carried out.

    Raises:
        PrepareError: the bytes are no whole picture, or one so large that it fills the memory.
    """
    return read_rgb(data)[0]


def draw(shapes: Sequence[Shape], size: tuple[int, int]) -> Mask:
    """What shapes mark, bool `[H, W]`, of a picture of `size` (width, height).

    Raises:
        PictureError: a shape lies outside of the picture, or has too few points.
    """
    canvas = Image.new("1", size)
    pen = ImageDraw.Draw(canvas)
    for kind, points in shapes:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if len(points) < (3 if kind == "polygon" else 2):
            raise PictureError(f"a {kind} has {len(points)} points")
        if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= size[0] or min(ys) >= size[1]:
            raise PictureError(
                f"a {kind} at x {min(xs):g} to {max(xs):g}, y {min(ys):g} to {max(ys):g} lies "
                f"outside of the picture, which is {size[0]}×{size[1]}"
            )
        if kind == "polygon":
            pen.polygon(list(points), fill=1)
        elif kind == "rectangle":  # half-open, as boxes are; Pillow draws the last pixel, too
            pen.rectangle((min(xs), min(ys), max(xs) - 1, max(ys) - 1), fill=1)
        else:
            (x, y), (on_x, on_y) = points[:2]
            radius = float(np.hypot(on_x - x, on_y - y))
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(canvas)


def fit_picture(image: Image.Image, size: int, fit: str) -> NDArray[np.uint8]:
    """Pixels uint8 `[3, size, size]` of an RGB picture."""
    if image.size != (size, size):
        box = _middle(image.size) if fit == "crop" else None
        image = image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def fit_mask_picture(mask: Mask, size: int, fit: str) -> Mask:
    """Bool `[size, size]`: a pixel is marked if any of those that it stands for was."""
    if mask.shape == (size, size):
        return mask
    image = Image.fromarray(mask.astype(np.float32))
    box = _middle(image.size) if fit == "crop" else None
    small = image.resize((size, size), Image.Resampling.BOX, box)
    return np.asarray(small) > 0


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest square in the middle of (width, height): left, top, right, bottom."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def pack(mask: Mask) -> NDArray[np.uint8]:
    """A mask as bits, uint8 `[⌈H·W / 8⌉]`."""
    return np.packbits(mask.reshape(-1))


def unpack(bits: NDArray[np.uint8], size: int) -> Mask:
    """The masks `[n, size, size]` of rows of bits `[n, ⌈size² / 8⌉]`."""
    return np.unpackbits(bits, axis=-1, count=size * size).astype(bool).reshape(-1, size, size)


def prepare(data: bytes, preprocessing: dict[str, Any]) -> NDArray[np.float32]:
    """The model's input `[3, H, W]` of the bytes of a picture, as `Bunch.preprocessing` says.

    Raises:
        PrepareError: the bytes are no whole picture.
    """
    size, fit = preprocessing["size"], preprocessing["fit"]
    pixels = fit_picture(read_picture(data), size, fit).astype(np.float32) / 255
    mean, std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
    return np.asarray((pixels - mean[:, None, None]) / std[:, None, None], np.float32)
