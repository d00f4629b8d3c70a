"""The table of parameters: one row per view, what its columns mean, and which random words a row is drawn from."""

from __future__ import annotations

from itertools import permutations

COLUMNS = (
    "y", "x", "h", "w",  # the crop in pixels of the stored image; whole numbers
    "flip",  # 1: mirrored left and right
    "jitter_on",  # 0: the next five columns are to be ignored
    "brightness", "contrast", "saturation",  # factors, 1 = unchanged
    "hue",  # turns of the colour circle, 0 = unchanged
    "order",  # 0–23, a row of JITTER_ORDERS
    "gray",  # 1: the colour is dropped
    "sigma",  # of the blur, in pixels of the view; 0 = no blur
)  # fmt: skip
Y, X, H, W, FLIP, JITTER_ON, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAY, SIGMA = range(len(COLUMNS))

# Which operation comes first, second, third and last: 0 brightness, 1 contrast, 2 saturation, 3 hue.
JITTER_ORDERS = tuple(permutations(range(HUE + 1 - BRIGHTNESS)))
NO_JITTER = len(JITTER_ORDERS)  # in place of a row, for a view that is left alone

BLOCKS_PER_VIEW = 16  # a view's share of the counter's last word: 64 random words, of which 32 are used
