"""Two label-free measures of a feature matrix, and the alarm when all images have become one point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .threads import one_thread

SAMPLE = 10_000
COLLAPSED_SPREAD = 0.1  # of what isotropic features would have


@dataclass(frozen=True)
class FeatureStatistics:
    """Of up to 10,000 feature rows.

    Attributes:
        dim: D.
        std: mean over dimensions of the standard deviation of the L2-normalised features; 1/√D when isotropic
            around zero, 0 when collapsed (SimSiam, arXiv 2011.10566, section 4.1).
        effective_rank: RankMe, exp of the entropy of the normalised singular values (arXiv 2210.02885); 1..D.
    """

    dim: int
    std: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether the features hardly differ from image to image."""
        return self.std * self.dim**0.5 < COLLAPSED_SPREAD

    def note(self) -> str | None:
        """A sentence for the notes when collapsed."""
        if not self.collapsed:
            return None
        return (
            f"collapse: the features are nearly constant (std of unit features {self.std:.2g}, "
            f"{1 / self.dim**0.5:.2g} when spread evenly; effective rank {self.effective_rank:.1f} of {self.dim})"
        )


def feature_statistics(features: NDArray[np.float32]) -> FeatureStatistics:
    """Statistics of features float32 `[N, D]`, N ≥ 1 (an even sample of 10,000 rows of more)."""
    if len(features) > SAMPLE:
        features = features[np.linspace(0, len(features) - 1, SAMPLE).astype(np.int64)]
    rows = features.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    # Singular values through the D × D Gram matrix: 20 times faster than an SVD of N × D, and the small ones that
    # this blurs (below 1e-8 of the largest) carry no entropy.
    with one_thread():
        gram = features.astype(np.float64).T @ features
        singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    share = singular / max(float(singular.sum()), 1e-300) + 1e-12
    return FeatureStatistics(
        dim=int(features.shape[1]),
        std=float(rows.std(0).mean()),
        effective_rank=float(np.exp(-(share * np.log(share)).sum())),
    )
