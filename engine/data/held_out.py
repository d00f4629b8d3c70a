"""The fixed stratified split of labelled images that come without a test split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def held_out_rows(labels: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Which rows are held out: the same share of every class, chosen by a fixed seed, so always the same rows.

    Of a class of two or more images at least one is held out and one is kept; a single image is kept.

    Args:
        labels: int64 `[N]`.
        fraction: the share to hold out, between 0 and 1.

    Returns:
        bool `[N]`.
    """
    random = np.random.default_rng(0)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        count = round(fraction * len(rows))
        if len(rows) > 1:
            count = min(max(count, 1), len(rows) - 1)
        chosen[rows[: min(count, len(rows) - 1)]] = True
    return chosen
