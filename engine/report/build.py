"""write_report(): figures/*.png and report.html of a run. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation.result import Comparison
from ..files import Folder
from ..run import Run
from .content import gather
from .page import DrawnPicture, render_page
from .picture import Picture
from .pictures import GALLERY, run_pictures
from .result_pictures import classifier_pictures
from .style import THEMES, to_png

PICTURES = "the pictures"  # in an error: cannot write …


def write_report(run: Run, *, gallery: int = GALLERY, seed: int = 0) -> Path:
    """Draws every picture that the run's log and results allow and writes `figures/*.png` and `report.html`.

    Args:
        run: the run.
        gallery: images of a prediction gallery, at most 100.
        seed: which of the stored test images the galleries show; the same for the same seed.

    Returns:
        The path of the page.

    Raises:
        DataError: a result under evaluation/ cannot be read.
        PlatformError: the run directory cannot be written.
    """
    at = Folder.open(run.directory, PICTURES)
    content = gather(run)
    drawn = _draw(run_pictures(content, images=gallery, seed=seed), at.folder("figures"))
    at.write_text("report.html", render_page(content, drawn))
    return run.directory / "report.html"


def write_pictures(comparison: Comparison, directory: Path) -> None:
    """The pictures of one method as PNG files in `directory`, for results that belong to no run.

    Raises:
        PlatformError: the directory cannot be written.
    """
    _draw(classifier_pictures(comparison), Folder.open(directory, PICTURES, make=True))


def _draw(wanted: Sequence[Picture], directory: Folder) -> list[DrawnPicture]:
    """Each picture in both themes; the light one is also written to `directory`."""
    drawn = []
    for one in wanted:
        png = {theme.name: to_png(one.draw(theme)) for theme in THEMES}
        directory.write(f"{one.name}.png", png["light"])
        drawn.append(DrawnPicture(one.section, one.caption, png))
    return drawn
