"""scikit-learn's bundled digits: 1,797 scanned figures of 8 × 8, there without any download."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .held_out import held_out_rows

TEST_FRACTION = 0.2


def load_digits() -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]]:
    """The splits `train` and `test` (80 % and 20 % of every class, always the same rows).

    Yields:
        (split, uint8 `[N, 8, 8, 3]` gray as RGB, int64 labels `[N]`, class names). The 17 gray levels 0 to 16 are
        spread over 0 to 255. The packed size is 32 × 32 unless told otherwise (`named.NATIVE_SIZES`): at 8 × 8 a
        residual network with four stages has nothing left to convolve.
    """
    from sklearn.datasets import load_digits as load_bundled

    bundled = load_bundled()
    gray = np.rint(bundled.images * (255 / 16)).astype(np.uint8)
    images = np.ascontiguousarray(np.broadcast_to(gray[..., None], (*gray.shape, 3)))
    labels = bundled.target.astype(np.int64)
    names = tuple(str(name) for name in bundled.target_names)
    in_test = held_out_rows(labels, TEST_FRACTION)
    yield "train", images[~in_test], labels[~in_test], names
    yield "test", images[in_test], labels[in_test], names
