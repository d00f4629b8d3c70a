"""Which pictures a run gives."""

from __future__ import annotations

from .content import ReportContent
from .feature_pictures import feature_pictures
from .picture import Picture
from .pretraining_pictures import curve_pictures, monitor_pictures, view_pictures
from .result_pictures import learning_pictures, method_pictures, prediction_pictures

GALLERY = 24


def run_pictures(content: ReportContent, *, images: int = GALLERY, seed: int = 0) -> list[Picture]:
    """All pictures that the run's log and results allow, evaluation first.

    Args:
        content: the run.
        images: how many of the stored test images a prediction gallery shows.
        seed: which of them, the same for the same seed.
    """
    results = content.run.directory / "evaluation"
    return [
        *method_pictures(content.comparisons),
        *prediction_pictures(content.comparisons, results, images, seed),
        *(p for one in content.comparisons for p in learning_pictures(one, results)),
        *feature_pictures(content),
        *curve_pictures(content),
        *monitor_pictures(content),
        *view_pictures(content),
    ]
