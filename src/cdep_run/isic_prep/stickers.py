"""Paste coloured stickers, as on the ISIC archive's photographs, with an exactly known mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.color import lab2rgb, rgb2lab

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

COLOURS = {  # sRGB; medians inside the masks of real stickers, one for each kind seen
    "teal": (110, 174, 177),
    "aqua": (150, 222, 220),
    "blue": (5, 134, 197),
    "sky": (110, 150, 219),
    "lavender": (165, 160, 210),
    "orange": (222, 126, 45),
    "salmon": (244, 123, 103),
    "red": (236, 50, 38),
    "yellow": (208, 196, 48),
    "green": (54, 147, 62),
}


@dataclass(frozen=True)
class StickerStyle:
    """Ranges of what a sticker looks like; each pair is the range of a uniform draw.

    The ranges cover the real stickers of ISIC's SONIC study: nearly round, cut by the border.

    Attributes:
        colours: names out of `COLOURS`.
        radius: mean radius, as a share of the image's shorter side.
        depth: how far the sticker reaches into the image, as a share of the shorter side.
        axis_ratio: of the two half axes: 1 is a circle.
        rounded: share of stickers that are rounded squares instead of ellipses.
        colour_spread: standard deviation of L, a and b around the colour, in CIELAB units.
        ring: share of stickers with an inner disc of another lightness.
        core: share of stickers with a core of another colour.
        grain: standard deviation of the paper's fine grain, in units of L.
        shading: largest change of L from one edge to the other.
        glare: share of stickers with a bright reflection.
        edge: width of the soft edge in pixels.
    """

    colours: tuple[str, ...] = tuple(COLOURS)
    radius: tuple[float, float] = (0.25, 0.45)
    depth: tuple[float, float] = (0.05, 0.45)
    axis_ratio: tuple[float, float] = (0.85, 1.18)
    rounded: float = 0.1
    colour_spread: float = 3.0
    ring: float = 0.4
    core: float = 0.1
    grain: float = 2.5
    shading: float = 8.0
    glare: float = 0.15
    edge: float = 1.5


def paste_sticker(
    image: Image,
    rng: np.random.Generator | int,
    style: StickerStyle | None = None,
    avoid: Mask | None = None,
    tries: int = 20,
) -> tuple[Image, Mask]:
    """Paste one sticker that hangs over the border onto a copy of an image.

    Args:
        image: `[H, W, 3]` uint8, sRGB.
        rng: a generator, or a seed; the same seed gives the same sticker.
        style: ranges to draw from; None: those of the real stickers.
        avoid: `[H, W]` bool, pixels that should stay visible, such as the lesion.
        tries: positions drawn at most until one covers nothing of `avoid`; else the one that
            covers least is taken.

    Returns:
        The image, and `[H, W]` bool: True exactly where the sticker changed the image or covers
        it; every pixel outside is untouched.

    Raises:
        ValueError: the image is not uint8 `[H, W, 3]`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3]")
    rng = np.random.default_rng(rng)
    style = style or StickerStyle()
    places = (_place(image.shape[:2], rng, style) for _ in range(tries))
    best, least = None, image.size
    for distance, along in places:
        covered = 0 if avoid is None else int((avoid & (distance < 1)).sum())
        if covered < least:
            best, least = (distance, along), covered
        if not covered:
            break
    assert best is not None
    distance, along = best
    alpha = _soft_edge(distance, style.edge)
    paint = _paint(image, distance, along, rng, style)
    pasted = image + alpha[..., None] * (paint - image)
    return pasted.round().astype(np.uint8), alpha > 0


def _place(
    shape: tuple[int, ...], rng: np.random.Generator, style: StickerStyle
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw shape and place; returns each pixel's distance from the centre and along the shading.

    The distance is 1 on the outline.
    """
    height, width = shape
    short = min(shape)
    radius = rng.uniform(*style.radius) * short
    ratio = np.sqrt(rng.uniform(*style.axis_ratio))
    turn = rng.uniform(0, 2 * np.pi)
    exponent = 4 if rng.random() < style.rounded else 2  # 4: a square with round corners
    side, share = rng.integers(4), rng.random()
    inwards = rng.uniform(*style.depth) * short - radius  # centre to border; negative: outside
    y, x = [
        (inwards, share * width),
        (height - inwards, share * width),
        (share * height, inwards),
        (share * height, width - inwards),
    ][side]
    down, right = np.ogrid[:height, :width]
    down, right = down + 0.5 - y, right + 0.5 - x
    u = (right * np.cos(turn) + down * np.sin(turn)) / (radius * ratio)
    v = (down * np.cos(turn) - right * np.sin(turn)) / (radius / ratio)
    return (np.abs(u) ** exponent + np.abs(v) ** exponent) ** (1 / exponent), u


def _soft_edge(distance: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Compute the opacity: 1 inside, 0 from the outline on, a ramp of `width` pixels between."""
    slope = np.maximum(np.hypot(*np.gradient(distance)), 1e-9)  # change of distance per pixel
    return np.clip((1 - distance) / (slope * width), 0, 1)


def _paint(
    image: Image,
    distance: NDArray[np.float64],
    along: NDArray[np.float64],
    rng: np.random.Generator,
    style: StickerStyle,
) -> NDArray[np.float64]:
    """Paint the sticker's surface over the whole image, `[H, W, 3]` in 0..255, in its light."""
    usual_skin = 68.0  # median L of the photographs that the colours were measured on
    light = np.median(rgb2lab(image[::4, ::4])[..., 0]) - usual_skin
    colours = rng.choice(len(style.colours), size=2, replace=len(style.colours) < 2)
    base, other = (_lab(style.colours[i], rng, style.colour_spread) for i in colours)
    lab = np.broadcast_to(base, (*distance.shape, 3)).copy()
    if rng.random() < style.ring:
        lab[distance < rng.uniform(0.5, 0.8), 0] += rng.uniform(3, 8) * rng.choice([-1, 1])
    if rng.random() < style.core:
        lab[distance < rng.uniform(0.2, 0.4)] = other
    # Half of the light's deviation: the camera's exposure follows the scene for the rest.
    lab[..., 0] += 0.5 * light + rng.uniform(-0.5, 0.5) * style.shading * np.clip(along, -1, 1)
    grain = gaussian_filter(rng.standard_normal(distance.shape), 0.7)
    lab[..., 0] += style.grain * grain / grain.std()
    if rng.random() < style.glare:
        spot = np.exp(-(((distance - rng.uniform(0.3, 0.9)) / 0.15) ** 2)) * (along > 0)
        lab[..., 0] += 25 * spot * np.clip(gaussian_filter(grain, 2) / grain.std() * 4, 0, 1)
    lab[..., 0] = np.clip(lab[..., 0], 0, 100)
    return 255 * np.clip(lab2rgb(lab), 0, 1)


def _lab(name: str, rng: np.random.Generator, spread: float) -> NDArray[np.float64]:
    """Draw a colour near the named one, in CIELAB."""
    rgb = np.array(COLOURS[name], dtype=np.uint8)
    return rgb2lab(rgb[None, None])[0, 0] + spread * rng.standard_normal(3)
