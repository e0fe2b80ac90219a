"""Pasted stickers: the mask is exact, the draw is seeded, what should stay visible does."""

import numpy as np
import pytest

from cdep_run.isic_prep.stickers import COLOURS, StickerStyle, paste_sticker

SKIN = np.full((64, 80, 3), (205, 170, 150), dtype=np.uint8)


def test_every_pixel_outside_the_mask_is_untouched_and_inside_nearly_all_changed():
    for seed in range(20):
        pasted, mask = paste_sticker(SKIN, seed)
        changed = (pasted != SKIN).any(2)
        assert not (changed & ~mask).any()
        assert changed.sum() > 0.9 * mask.sum() > 0


def test_the_sticker_hangs_over_the_border_and_is_the_colour_that_was_asked_for():
    blue = StickerStyle(colours=("blue",), ring=0, core=0, glare=0, colour_spread=0, shading=0)
    for seed in range(20):
        pasted, mask = paste_sticker(SKIN, seed, blue)
        assert mask[[0, -1]].any() or mask[:, [0, -1]].any()
        assert np.abs(np.median(pasted[mask], 0) - COLOURS["blue"]).max() < 40


def test_the_same_seed_gives_the_same_sticker_and_another_one_another():
    first, again, other = (paste_sticker(SKIN, seed)[0] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_a_lesion_is_left_visible_where_there_is_room():
    lesion = np.zeros(SKIN.shape[:2], dtype=bool)
    lesion[:, :50] = True
    covered = [(paste_sticker(SKIN, s, avoid=lesion)[1] & lesion).sum() for s in range(20)]
    blind = [(paste_sticker(SKIN, s)[1] & lesion).sum() for s in range(20)]
    assert np.count_nonzero(covered) <= 1 < np.count_nonzero(blind)


def test_another_kind_of_array_is_refused():
    with pytest.raises(ValueError, match=r"float64 \[64, 80, 3\]; expected uint8"):
        paste_sticker(SKIN / 255, 0)  # type: ignore[arg-type]
