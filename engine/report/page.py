"""report.html: one self-contained page of a run, light and dark, for desktop, phone and paper; and figures/*.png.

Imports no torch, and jinja2 only where a page is rendered.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import shell_command
from ..errors import PlatformError, counted, plain
from ..evaluation.result import Comparison, percent, points, standard_error
from ..files import Folder
from ..run import Run
from . import style
from .content import ReportContent, commands, duration, load_content, other_encoders, run_facts
from .feature_figures import feature_pictures
from .pretraining_figures import pretraining_pictures
from .result_figures import classifier_pictures, result_pictures
from .style import LIGHT, THEMES, Picture, image_png, to_png
from .tables import (
    Section,
    accuracy,
    accuracy_text,
    classes_section,
    difference,
    exported_section,
    folds_section,
    methods_section,
    protocols_section,
    published_section,
)

if TYPE_CHECKING:
    from jinja2 import Environment

GALLERY = 24
PICTURES = "the pictures"  # in an error: cannot write …


@dataclass(frozen=True)
class DrawnPicture:
    """A picture as the page embeds it: `png` by theme name (`light`, `dark`; of a sheet, which the page lays out, only
    the light one, for its file)."""

    picture: Picture
    png: Mapping[str, bytes]


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
        PlatformError: jinja2 is not installed, or the run directory cannot be written.
    """
    _templates()  # before the pictures, which take long
    directory = Folder.open(run.directory, PICTURES)
    content = load_content(run)
    figures = directory.folder("figures")
    for at in (directory, figures):
        at.sweep()
    drawn = _write_pictures(run_pictures(content, images=gallery, seed=seed), figures)
    directory.write_text("report.html", render_page(content, drawn))
    return run.directory / "report.html"


def write_pictures(comparison: Comparison, directory: Path) -> None:
    """The pictures of one method as PNG files in `directory`, for results that belong to no run.

    Raises:
        PlatformError: the directory cannot be written.
    """
    _write_pictures(classifier_pictures(comparison), Folder.open(directory, PICTURES, make=True))


def _write_pictures(pictures: Sequence[Picture], directory: Folder) -> list[DrawnPicture]:
    """Each picture in both themes; the light one is also written to `directory`."""
    drawn = []
    for picture in pictures:
        drawn.append(draw(picture))
        directory.write(f"{picture.name}.png", drawn[-1].png["light"])
    return drawn


def run_pictures(content: ReportContent, *, images: int = GALLERY, seed: int = 0) -> list[Picture]:
    """All pictures that the run's log and results allow, evaluation first.

    Args:
        content: the run.
        images: how many of the stored test images a prediction gallery shows.
        seed: which of them, the same for the same seed.
    """
    results = result_pictures(content.comparisons, content.run.directory / "evaluation", images, seed)
    return [*results, *feature_pictures(content), *pretraining_pictures(content)]


def draw(picture: Picture) -> DrawnPicture:
    """The picture in every theme that is needed."""
    themes = (LIGHT,) if picture.sheet else THEMES
    return DrawnPicture(picture, {theme.name: to_png(picture.draw(theme=theme)) for theme in themes})


def with_pictures(section: Section, drawn: Sequence[DrawnPicture]) -> Section:
    """The section with these pictures, and once what several of them have in common."""
    notes = dict.fromkeys(one.picture.note for one in drawn if one.picture.note)
    return replace(section, lead=" ".join(notes), pictures=[shown_picture(one) for one in drawn])


def render_page(content: ReportContent, drawn: Sequence[DrawnPicture]) -> str:
    """The page as one HTML text.

    Raises:
        PlatformError: jinja2 is not installed.
    """
    recipe, name = content.run.recipe, content.run.directory.resolve().name
    folded = (f"The resolved recipe ({recipe.hash()[:12]}…)", recipe.to_toml().splitlines())
    notes = content.run.environment.get("notes", ())
    groups: dict[str, list[DrawnPicture]] = {}
    for one in drawn:
        groups.setdefault(one.picture.section, []).append(one)
    methods = methods_section(content.comparisons)
    sections = [
        with_pictures(methods, groups.pop(methods.heading, ())) if methods else None,
        folds_section(content.comparisons),
        published_section(content),
        *(with_pictures(Section(title), members) for title, members in groups.items()),
        classes_section(content.headline),
        protocols_section(content.results),
        Section("What was run", facts=run_facts(content), notes=notes),
        exported_section(content.export),
        Section("Reproduce", code=commands(content), folded=folded),
    ]
    return render(
        "report",
        f"{name} — simclr-engine report",
        sections,
        str(content.run.environment.get("version", "")),
        name=name,
        run=_about(content),
        alarm=other_encoders(content.results),
        headline=_headline(content.headline) if content.headline else None,
        evaluate=shell_command("evaluate", content.run.directory),
    )


def render(command: str, title: str, sections: Sequence[Section | None], version: str, **top: Any) -> str:
    """A whole page.

    Args:
        command: what writes it, of `simclr-engine`; its template has the same name.
        title: of the browser's tab.
        sections: its parts in order; None for those that there is nothing to say in.
        version: of this software.
        top: what the template says above its contents.

    Raises:
        PlatformError: jinja2 is not installed.
    """
    shown: dict[str, Section] = {}
    for section in sections:
        if section is not None:
            anchor = re.sub(r"[^a-z0-9]+", "-", section.heading.lower()).strip("-") or "part"
            shown[f"{anchor}-{len(shown)}" if anchor in shown else anchor] = section
    template = _templates().get_template(f"{command}.html.j2")
    return template.render(command=command, title=title, sections=shown, version=version, **top)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """The templates, in which all text is escaped and what a page cannot hold is made visible as `\\x1b`."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise PlatformError("a report page needs jinja2", saw=str(error), fix="pip install jinja2") from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["unbroken"] = lambda text: str(text).replace(" %", "\u00a0%")
    return environment


def _visible(value: Any) -> Any:
    """A value of a template; markup stays as it is."""
    if hasattr(value, "__html__"):
        return value
    return plain(str(value))


def shown_picture(drawn: DrawnPicture) -> dict[str, Any]:
    """A picture as a template needs it: the caption, and of a sheet its tiles, of a chart both themes as data URIs, its
    size in pixels and on the page."""
    picture = drawn.picture
    caption = picture.caption
    if picture.sheet is not None:
        tiles = [(tile, *tile.image.shape[:2], _data(image_png(tile.image))) for tile in picture.sheet.tiles]
        return {"caption": caption, "sheet": picture.sheet, "wide": picture.sheet.wide, "tiles": tiles}
    width, height = _pixels(drawn.png["light"])
    return {
        "caption": caption,
        "sheet": None,
        "wide": False,
        "width": width,
        "height": height,
        "drawn": round(width / style.DPI * 108),  # little more than the drawn size: small pictures are not blown up
        "sources": {name: _data(png) for name, png in drawn.png.items()},
    }


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _pixels(png: bytes) -> tuple[int, int]:
    """Width and height from the IHDR chunk, which every PNG starts with (PNG 1.2, section 11.2.2)."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _about(content: ReportContent) -> dict[str, Any]:
    """What stands below the name of the run."""
    env, recipe = content.run.environment, content.run.recipe
    return {
        "unfinished": content.run.unfinished,
        "recipe": recipe.name,
        "arch": "own encoder" if recipe.model.arch == "own" else recipe.model.arch,
        "epochs": content.length,
        "images": counted(content.images, "image"),
        "data": content.data_name,
        "image_size": content.data.get("image_size", "?"),
        "duration": duration(float(env["seconds"])) if env.get("seconds") else "",
        "device": content.device or "an unknown device",
    }


def _headline(pair: Comparison) -> dict[str, Any]:
    """The accuracy on top of the page, beside the random encoder's and that of always naming the largest class."""
    shown, n, gap = pair.shown, pair.shown.test_images, difference(pair)
    both = (("pretrained", "fill", pair.trained), ("random", "fill scratch", pair.scratch))
    return {
        "percent": percent(accuracy(shown), n)[:-2],
        "method": pair.name,
        "encoder": "random" if pair.trained is None else "pretrained",
        "random": accuracy_text(pair.scratch) if gap is not None else "",
        "gap": gap,
        "points": points(gap, n) if gap is not None else "",
        "bars": [
            (name, css, f"{100 * accuracy(result):.2f}", percent(accuracy(result), result.test_images))
            for name, css, result in both
            if result is not None
        ],
        "chance": f"{100 * pair.chance:.2f}",
        "chance_text": percent(pair.chance, n),
        "certainty": _certainty(pair),
    }


def _certainty(pair: Comparison) -> str:
    """The protocol of the headline, and how far its accuracy can be trusted."""
    shown = pair.shown
    if shown.fold_spread is not None:
        sd = f"{100 * shown.fold_spread[1]:.2f} points"
        return (
            f"Mean accuracy on the held-out folds by {shown.protocol}. Standard deviation over the "
            f"{len(shown.folds)} folds: {sd}."
        )
    error = f"± {100 * standard_error(shown):.2f} points"
    images = counted(shown.test_images, "test image")
    return f"Test accuracy by {shown.protocol}. Standard error from {images}: {error}."
