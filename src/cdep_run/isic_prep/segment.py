"""Find coloured stickers in a skin photograph: superpixels far from skin, with a round outline.

After Rieger et al. 2019, Section S4 (SLIC superpixels whose mean colour is far from skin tone,
applied recursively). Differs: skin tone is estimated in each image, as a plane over it, because
skin and light vary more than stickers do; colour distance is taken in CIELAB instead of RGB and
HSV; and a region counts as a sticker only if its outline is sharp and round and it reaches the
border, because lesions are far from skin tone, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import label
from skimage.morphology import convex_hull_image, disk
from skimage.segmentation import slic

from cdep_run.isic_prep.settings import Segment

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

AROUND = 25
"""Width in pixels of the square that says what lies around a pixel of a region's outline."""


@dataclass(frozen=True)
class Region:
    """A region that might be a sticker; lengths are shares of the image's width.

    Attributes:
        mask: `[H, W]` bool, convex.
        area: share of the image.
        solidity: share of the mask that has the sticker's colour.
        chroma: distance from the skin around in a and b of CIELAB.
        lighter: L of the region minus that of the skin.
        radius: of the circle through its outline inside the image.
        roundness: root mean square distance of that outline from the circle.
        sharp: share of the outline where the colour changes much within a few pixels.
        warm: both a and b are above those of skin, as in anything brown.
    """

    mask: Mask
    area: float
    solidity: float
    chroma: float
    lighter: float
    radius: float
    roundness: float
    sharp: float
    warm: bool


def segment_patches(image: NDArray[np.uint8], options: Segment) -> Mask:
    """Mark the stickers on an image.

    Args:
        image: uint8 `[H, W, 3]`, sRGB.
        options: all but `dilate` are used.

    Returns:
        bool `[H, W]`, True on a sticker; not dilated.
    """
    mask = np.zeros(image.shape[:2], dtype=bool)
    for region in regions(image, options):
        if is_sticker(region, options):
            mask |= region.mask
    return mask


def dilate(mask: Mask, size: int) -> Mask:
    """Grow a mask by a `size` × `size` square, as in the paper; 0 leaves it as it is."""
    if not size or not mask.any():
        return mask
    return ndimage.maximum_filter(mask, size=size, mode="constant")


def is_sticker(region: Region, options: Segment) -> bool:
    """Decide whether a region has the size, sharpness, roundness and colour of a sticker."""
    if not options.smallest <= region.area <= options.largest:
        return False
    if not options.radius[0] <= region.radius <= options.radius[1]:
        return False
    grey = region.chroma < options.grey
    if (region.warm or grey) and -region.lighter > options.darker * max(
        region.chroma, options.grey
    ):
        return False  # brown or black: a lesion, a shadow, the lens
    if not grey and region.sharp >= options.sharp and region.solidity >= options.solidity:
        return region.chroma >= options.vivid or region.roundness <= options.roundness
    return (
        region.solidity >= options.grey_solidity
        and region.sharp >= options.grey_sharp
        and region.roundness <= options.grey_roundness
    )


def regions(image: NDArray[np.uint8], options: Segment) -> list[Region]:
    """Find the regions of one colour, unlike skin, that touch the border.

    They come in the order of their distance from the colour of skin, farthest first.
    """
    lab = rgb2lab(image)
    skin = skin_tone(lab, options)
    weights = np.array([options.lightness_weight, 1, 1])
    segments = slic(
        lab,
        options.superpixels,
        options.compactness,
        max_num_iter=5,
        convert2lab=False,
        start_label=0,
        channel_axis=-1,
    )
    count = int(segments.max()) + 1
    size = np.bincount(segments.ravel(), minlength=count)
    means = np.stack(
        [np.bincount(segments.ravel(), lab[..., i].ravel(), minlength=count) / size
         for i in range(3)], axis=-1,
    )  # fmt: skip
    tone = np.stack(
        [np.bincount(segments.ravel(), skin[..., i].ravel(), minlength=count) / size
         for i in range(3)], axis=-1,
    )  # fmt: skip
    distance = np.linalg.norm((means - tone) * weights, axis=1)
    left = distance > options.far
    at_border = np.zeros(count, dtype=bool)
    at_border[np.unique(np.r_[segments[0], segments[-1], segments[:, 0], segments[:, -1]])] = True
    smooth = ndimage.median_filter(lab, size=(3, 3, 1))
    result = []
    while (left & at_border).any():  # the paper's recursion: each region is taken away
        seed = int(np.argmax(np.where(left & at_border, distance, -1)))
        grown = _grow(seed, left, segments, means, weights, options)
        left[np.unique(segments[grown])] = False
        if grown.mean() < options.smallest / 2:
            continue
        region = _outline(grown, smooth, skin, weights, options)
        if region is not None:
            result.append(region)
            inside = np.bincount(segments.ravel(), region.mask.ravel(), minlength=count)
            left[inside > size / 2] = False
    return result


def skin_tone(lab: Floats, options: Segment) -> Floats:
    """Estimate the colour of skin at each pixel, `[H, W, 3]` in CIELAB.

    L, a and b are each a plane over the image. The planes are fitted to the pixels near one colour:
    the lightest of the frequent ones that skin can have, as lesions are darker. Two more fits leave
    out the outliers of the one before.
    """
    thin = lab[::3, ::3]  # a ninth of the pixels fixes nine numbers well enough
    pixels = thin.reshape(-1, 3)
    lightness, a, b = pixels.T
    (a0, a1), (b0, b1) = options.skin_a, options.skin_b
    possible = (lightness > 25) & (a > a0) & (a < a1) & (b > b0) & (b < b1)
    if possible.mean() < 0.02:
        possible = np.ones(len(pixels), dtype=bool)
    bins = [np.arange(a0 - 4, a1 + 6, 2.0), np.arange(b0 - 4, b1 + 6, 2.0)]
    counts, _, _ = np.histogram2d(a[possible], b[possible], bins=bins)
    counts = ndimage.gaussian_filter(counts, 1)
    frequent = (counts == ndimage.maximum_filter(counts, 3)) & (counts > 0.3 * counts.max())
    centres = [(bins[0][i] + 1, bins[1][j] + 1) for i, j in np.argwhere(frequent)]
    near = [possible & (np.hypot(a - x, b - y) < 8) for x, y in centres]
    near = [group for group in near if group.any()] or [possible]
    kept = max(near, key=lambda group: float(np.median(lightness[group])))
    kept = kept & (lightness >= np.percentile(lightness[kept], 25))
    plane = _plane(*thin.shape[:2])
    for spreads in (3, 2.5, 2.5):
        factors, *_ = np.linalg.lstsq(plane[kept], pixels[kept], rcond=None)
        rest = np.abs(pixels - plane @ factors)
        spread = np.maximum(1.48 * np.median(rest[kept], axis=0), [2, 1, 1])
        closer = (rest < spreads * spread).all(1) & possible
        if closer.sum() < 100:
            break
        kept = closer
    return (_plane(*lab.shape[:2]) @ factors).reshape(lab.shape)


def _plane(height: int, width: int) -> Floats:
    """Return for each pixel 1 and its coordinates from -½ to ½, `[H·W, 3]`."""
    y, x = np.mgrid[:height, :width]
    return np.c_[np.ones(y.size), y.ravel() / height - 0.5, x.ravel() / width - 0.5]


def _grow(
    seed: int, left: Mask, segments: NDArray[np.int64], means: Floats, weights: Floats,
    options: Segment,
) -> Mask:  # fmt: skip
    """Mark the connected superpixels around the superpixel `seed` that have its colour."""
    colour = means[seed]
    for _ in range(2):  # the second time around the median of the first
        alike = left & (np.linalg.norm((means - colour) * weights, axis=1) < options.alike)
        alike[seed] = True
        parts = label(alike[segments], connectivity=1)
        grown = parts == parts[segments == seed][0]
        colour = np.median(means[np.unique(segments[grown])], axis=0)
    return grown


def _outline(
    grown: Mask, smooth: Floats, skin: Floats, weights: Floats, options: Segment
) -> Region | None:
    """Find the exact, convex outline of a region of superpixels, and measure it.

    Args:
        grown: `[H, W]` bool, the superpixels.
        smooth: `[H, W, 3]`, the image in CIELAB without its finest grain.
        skin: `[H, W, 3]`, skin's colour at each pixel.
        weights: `[3]`, of L, a and b in colour distances.
        options: `reach` and `step` are used.

    Returns:
        The region, or None where nothing is left of it or it does not reach the border.
    """
    shape, reach = grown.shape, round(options.reach * grown.shape[1])
    window = _window(grown, margin=reach + AROUND // 2)  # all that follows happens near it
    grown, smooth, skin = grown[window], smooth[window], skin[window]
    distance = np.linalg.norm((smooth - skin) * weights, axis=-1)
    # Superpixels at the edge hold skin, too: the colour is that of the pixels farthest from it.
    pure = grown & (distance > 0.7 * np.percentile(distance[grown], 90))
    colour = np.median(smooth[pure], axis=0)
    zone = ndimage.binary_dilation(grown, disk(reach))  # the sticker's tips may lie outside
    for _ in range(2):  # the second time against what is really around it, lesion or reflection
        towards = (colour - skin) * weights
        share = ((smooth - skin) * weights * towards).sum(-1)
        # From a third of the way on: the soft edge belongs to the sticker.
        pixels = zone & (share > (towards**2).sum(-1) / 3)
        pixels = ndimage.binary_opening(np.pad(pixels, 3, mode="edge"), disk(3))[3:-3, 3:-3]  # hair
        parts = label(pixels)
        if not parts.max():
            return None
        pixels = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        if pixels.sum() < 30 or min(np.ptp(np.nonzero(pixels), axis=1)) < 3:
            return None
        mask = convex_hull_image(pixels)
        around = ndimage.maximum_filter(mask, AROUND) & ~ndimage.maximum_filter(mask, 9)
        if around.any():
            skin = skin + np.median((smooth - skin)[around], axis=0)
    edge = mask & ~ndimage.binary_erosion(mask, disk(1), border_value=1)
    edge[[0, -1]] = edge[:, [0, -1]] = False
    y, x = np.nonzero(edge)
    reaches_border = mask[[0, -1]].any() or mask[:, [0, -1]].any()
    if len(y) < 20 or not reaches_border:
        return None
    width = shape[1]
    radius, roundness = _circle(y, x)
    lighter, more_a, more_b = colour - skin[mask].mean(0)
    whole = np.zeros(shape, dtype=bool)
    whole[window] = mask
    return Region(
        mask=whole,
        area=float(whole.mean()),
        solidity=float(pixels.sum() / mask.sum()),
        chroma=float(np.hypot(more_a, more_b)),
        lighter=float(lighter),
        radius=radius / width,
        roundness=roundness / width,
        sharp=_sharpness(mask, y, x, smooth * weights, (colour - skin) * weights, options.step),
        warm=bool(more_a > 0 and more_b > 0),
    )


def _window(mask: Mask, margin: int) -> tuple[slice, slice]:
    """Return the box around a mask, with a margin, cut off at the image's border."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


def _circle(y: NDArray[np.int64], x: NDArray[np.int64]) -> tuple[float, float]:
    """Fit a circle to points by least squares; returns its radius and their rms distance."""
    system = np.c_[x, y, np.ones(len(x))].astype(float)
    (p, q, r), *_ = np.linalg.lstsq(system, -(x**2.0 + y**2.0), rcond=None)
    radius = float(np.sqrt(max(p * p / 4 + q * q / 4 - r, 0)))
    off = np.hypot(x + p / 2, y + q / 2) - radius
    return radius, float(np.sqrt((off**2).mean()))


def _sharpness(
    mask: Mask, y: NDArray[np.int64], x: NDArray[np.int64], weighted: Floats, towards: Floats,
    step: float,
) -> float:  # fmt: skip
    """Measure the share of the outline that is sharp.

    It is sharp where the colours 4 pixels inwards and 4 pixels outwards differ by `step`, or by
    half of the region's distance from skin if that is less.
    """
    down, right = np.gradient(ndimage.gaussian_filter(mask.astype(float), 3))
    length = np.hypot(down, right)[y, x] + 1e-9

    def beside(pixels: int) -> Floats:
        rows = np.clip((y + pixels * down[y, x] / length).round(), 0, mask.shape[0] - 1)
        columns = np.clip((x + pixels * right[y, x] / length).round(), 0, mask.shape[1] - 1)
        return weighted[rows.astype(int), columns.astype(int)]

    change = np.linalg.norm(beside(4) - beside(-4), axis=1)
    enough = np.minimum(step, np.linalg.norm(towards[y, x], axis=1) / 2)
    return float((change > enough).mean())
