"""Turn the bytes of any picture file into RGB pixels or a mask, or say why that cannot be done."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cdep_run.errors import CdepError

UNREADABLE = (Exception,)
"""What Pillow raises at bytes that it cannot decode: each of its decoders raises errors of its own
kinds (OSError, SyntaxError, struct.error, NotImplementedError, …), and plug-ins add more."""

MOST_PIXELS = 178_956_970
"""Pictures with more pixels are refused: decoded, they take over half a gigabyte."""

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What turns a picture upright, by the value of its EXIF tag `ORIENTATION`."""

# Pillow prints warnings without a file's name, about metadata that are not used and about sizes,
# which are checked here against `MOST_PIXELS`.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class PrepareError(CdepError):
    """The given images or metadata cannot be used."""


def decoding_error(data: bytes, error: Exception) -> PrepareError:
    """Make a readable error of the exception that Pillow raised at the bytes of a file."""
    if isinstance(error, PrepareError):
        return error
    if not data:
        return PrepareError("the file is empty")
    if isinstance(error, UnidentifiedImageError):  # Pillow's message names a Python object
        return PrepareError("cannot be decoded: it is no picture of a known kind")
    if isinstance(error, Image.DecompressionBombError):
        return PrepareError(
            f"has more than {MOST_PIXELS / 1e6:.0f} megapixels: too large to decode"
        )
    if isinstance(error, MemoryError):
        return PrepareError("cannot be decoded: there is not enough memory for it")
    reason = " ".join(str(error).split())
    return PrepareError(f"cannot be decoded: {reason or type(error).__name__}")


def decode(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[Image.Image, list[str]]:
    """Decode a picture to its last row and turn it upright; pixels keep their mode.

    Metadata that cannot be read is ignored: it never costs the picture.

    Args:
        data: the bytes of a file.
        most_pixels: a picture with more is refused before it is decoded.

    Returns:
        The picture, of an animation the first frame, and what had to be changed.

    Raises:
        PrepareError: the bytes are no whole picture, or it is too large.
    """
    try:
        return _decode(data, most_pixels)
    except UNREADABLE as error:
        reason = decoding_error(data, error)
    bare = without_metadata(data)
    if bare != data:
        try:
            image, changes = _decode(bare, most_pixels)
        except UNREADABLE:
            raise reason from None
        return image, ["damaged metadata left out", *changes]
    raise reason


def _decode(data: bytes, most_pixels: int) -> tuple[Image.Image, list[str]]:
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        if width * height > most_pixels:
            raise PrepareError(
                f"has {width}×{height} pixels, {width * height / 1e6:.0f} megapixels; at most "
                f"{most_pixels / 1e6:.0f} are accepted: make it smaller"
            )
        opened.load()
        image, changes = opened.copy(), []
        try:
            if opened.format != "MPO" and getattr(opened, "is_animated", False):
                changes.append("the first of several frames")
            orientation = image.getexif().get(ORIENTATION, 1)
        except UNREADABLE:
            orientation = 1
            changes.append("unreadable metadata ignored")
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image, changes
    return image.transpose(method), [*changes, "EXIF rotation carried out"]


def without_metadata(data: bytes) -> bytes:
    """Return a JPEG or PNG file without comments, EXIF and the like; other files as they are."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _bare_jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _bare_png(data)
    except (IndexError, ValueError):
        pass  # cut off: nothing to be gained
    return data


def _bare_jpeg(data: bytes) -> bytes:
    """Drop the segments APP1 to APP13, APP15 and COM; APP14 says how colours are coded."""
    parts, at = [data[:2]], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the start of the pixels
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind != 0xFE and (kind == 0xEE or not 0xE1 <= kind <= 0xEF):
            parts.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*parts, data[at:]])


def _bare_png(data: bytes) -> bytes:
    """Keep the chunks that say what the pixels are."""
    parts, at = [data[:8]], 8
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def read_rgb(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[Image.Image, str]:
    """Decode a picture to RGB, upright, and say what had to be changed for it.

    CMYK, palette and grey are converted, numbers of 16 bits or with a fraction become 8 bits,
    transparency is laid on white, an EXIF rotation is carried out.

    Raises:
        PrepareError: the bytes are no whole picture, or it is too large.
    """
    image, changes = decode(data, most_pixels)
    try:
        if image.mode == "RGB" and "transparency" not in image.info:
            return image, "; ".join(changes)
        changes.append(f"{image.mode} made RGB")
        if image.mode.startswith(("I", "F")):
            image = Image.fromarray(_eight_bits(image, changes))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB"), "; ".join(changes)
    except UNREADABLE as error:
        raise decoding_error(data, error) from None


def _eight_bits(image: Image.Image, changes: list[str]) -> NDArray[np.uint8]:
    """Grey levels of 16 or 32 bits, or with a fraction, as 8 bits; `changes` gets what was done.

    Fractions up to 1 are shares of white, up to 255 they are levels of 8 bits, above of 16 bits.
    """
    values = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise PrepareError("cannot be used: no pixel is a finite number")
    if not finite.all():
        changes.append(f"{(~finite).sum()} pixels that are no finite number made black")
        values = np.where(finite, values, 0)
    largest = values.max()
    if largest > 65535:
        raise PrepareError(f"cannot be used: it has values up to {largest:g}; accepted: 65535")
    white = 65535
    if image.mode == "F":
        white = 1 if largest <= 1 else 255 if largest <= 255 else 65535
        changes.append(f"{white} taken for white")
    return np.clip(values / white * 255, 0, 255).round().astype(np.uint8)


def read_mask(data: bytes) -> NDArray[np.bool_]:
    """Decode a mask picture: bool `[H, W]`, True at every pixel that is not zero in all channels.

    With an alpha channel that is not opaque everywhere: True where a pixel is not wholly
    transparent. With a palette whose colour number 0 is black: every other colour number.

    Raises:
        PrepareError: the bytes are no whole picture.
    """
    image, _ = decode(data)
    try:
        coloured_zero = image.mode == "P" and any((image.getpalette("RGB") or [0])[:3])
        if coloured_zero or image.mode == "CMYK":
            image = image.convert("RGB")
        values = np.asarray(image)
    except UNREADABLE as error:
        raise decoding_error(data, error) from None
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        alpha = values[..., -1]
        values = alpha if (alpha < 255).any() else values[..., :-1]
    marked = (values != 0) & (values == values)  # NaN is no mark
    return marked.any(-1) if marked.ndim == 3 else marked
