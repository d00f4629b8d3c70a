"""report.html: one self-contained page, light and dark, for desktop, phone and paper; foreign text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..command_line import shell_command
from ..evaluation.result import Comparison, percent, points, standard_error
from . import markup, style
from .content import ReportContent, other_encoders
from .markup import anchor, duration, gain, short, text
from .provenance import export_facts, reproduce, run_facts
from .stylesheet import STYLESHEET
from .tables import (
    accuracy,
    accuracy_text,
    class_table,
    difference,
    fold_tables,
    methods_table,
    protocol_notes,
    published_table,
)

WIDE = 7.0  # inches; a wider picture takes both columns


@dataclass(frozen=True)
class DrawnPicture:
    """A picture as the page embeds it: `png` by theme name (`light`, `dark`)."""

    section: str
    caption: str
    png: Mapping[str, bytes]


def render_page(content: ReportContent, drawn: Sequence[DrawnPicture]) -> str:
    """The page as one HTML text."""
    name = content.run.directory.resolve().name
    titles = dict.fromkeys(picture.section for picture in drawn)
    sections = [
        ("Methods", methods_table(content.comparisons)),
        ("Folds", fold_tables(content.comparisons)),
        ("Beside published figures", published_table(content)),
        *((title, gallery([picture for picture in drawn if picture.section == title])) for title in titles),
        ("Classes", class_table(content.headline)),
        ("How the numbers were made", protocol_notes(content)),
        ("What was run", run_facts(content)),
        ("Exported file", export_facts(content.export)),
        ("Reproduce", reproduce(content)),
    ]
    warning = other_encoders(content.results)
    top = [
        _header(content, name),
        f'<p class="card alarm" role="note">{text(warning)}</p>' if warning else "",
        _hero(content.headline) if content.headline else _not_evaluated(content.run.directory),
    ]
    return document(f"{name} — simclr-engine report", top, sections, str(content.run.environment.get("version", "")))


def document(title: str, top: Iterable[str], sections: Iterable[tuple[str, str]], version: str) -> str:
    """A whole page.

    Args:
        title: of the browser's tab, plain text.
        top: html that stands above the contents; empty parts are left out.
        sections: heading (plain text) and html of each; those without html are left out.
        version: of this software.
    """
    shown: dict[str, tuple[str, str]] = {}
    for heading, html in sections:
        if html:
            at = anchor(heading)
            shown[f"{at}-{len(shown)}" if at in shown else at] = (heading, html)
    links = "".join(f'<li><a href="#{at}">{text(heading)}</a></li>' for at, (heading, _) in shown.items())
    contents = f'<nav class="contents" aria-label="Contents"><ul>{links}</ul></nav>' if len(shown) > 2 else ""
    parts = [
        f'<section id="{at}">\n<h2>{text(heading)}</h2>\n{html}\n</section>' for at, (heading, html) in shown.items()
    ]
    body = "\n".join(part for part in [*top, contents, *parts] if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLESHEET}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n<footer>simclr-engine {text(version)}. This file needs nothing beside it.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def gallery(drawn: Sequence[DrawnPicture]) -> str:
    """Pictures with their captions, two in a row where there is room; empty without any."""
    return f'<div class="pictures">{"".join(map(_figure, drawn))}</div>' if drawn else ""


def _figure(picture: DrawnPicture) -> str:
    """Both themes as images of which the stylesheet shows one: a <picture> keeps its dark source on paper."""
    width, height = _pixels(picture.png["light"])
    inches = width / style.DPI
    caption = text(picture.caption).replace(" %", "&nbsp;%")
    # Little more than the drawn size, so that small pictures are not blown up; the numbers keep the page from jumping.
    size = f'width="{width}" height="{height}" style="--drawn:{round(inches * 108)}px"'
    images = "".join(
        f'<img class="{theme}" alt="{caption}" {size} src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for theme, png in picture.png.items()
    )
    wide = " wide" if inches > WIDE else ""
    return f'<figure class="card{wide}">{images}<figcaption>{caption}</figcaption></figure>'


def _pixels(png: bytes) -> tuple[int, int]:
    """Width and height from the IHDR chunk, which every PNG starts with (PNG 1.2, section 11.2.2)."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _header(content: ReportContent, name: str) -> str:
    run, env = content.run, content.run.environment
    finished = bool(env.get("finished"))
    pill = f'<span class="pill{"" if finished else " off"}">{"finished" if finished else "not finished"}</span>'
    took = f" in <b>{duration(float(env['seconds']))}</b>" if env.get("seconds") else ""
    device = text(env.get("device_name") or env.get("device") or "an unknown device")
    images = int(content.data.get("images") or 0)
    return (
        f'<header>\n<p class="eyebrow">Pretraining report</p>\n<h1>{markup.name(name)}{pill}</h1>\n'
        f'<p class="lead">Recipe <b>{markup.name(run.recipe.name)}</b>: {text(run.recipe.model.arch)}, pretrained '
        f"without labels for <b>{short(content.epochs)} epochs</b> on {images:,} images of "
        f"<b>{markup.name(content.data_name)}</b> ({text(content.data.get('image_size', '?'))} px){took} on {device}."
        "</p>\n</header>"
    )


def _hero(one: Comparison) -> str:
    shown, n, gap = one.shown, one.shown.test_images, difference(one)
    whose = "random" if one.trained is None else "pretrained"
    versus = '<p class="versus">the random encoder has not been evaluated</p>' if one.trained else ""
    if gap is not None and one.scratch is not None:
        versus = f'<p class="versus">random encoder {accuracy_text(one.scratch)}: {gain(points(gap, n), gap)}</p>'
    return (
        '<section class="card hero">\n'
        f'<div><div class="big">{percent(accuracy(shown), n)[:-2]}<small> %</small></div>\n'
        f'<p class="what">{text(one.name)}, {whose} encoder</p>{versus}</div>\n{_bars(one)}\n'
        f'<p class="protocol">{text(_certainty(one))}</p>\n</section>'
    )


def _certainty(one: Comparison) -> str:
    """The protocol of the headline, and how far its accuracy can be trusted."""
    shown = one.shown
    if shown.fold_spread is not None:
        sd = f"{100 * shown.fold_spread[1]:.2f} points"
        return (
            f"Mean accuracy on the held-out folds by {shown.protocol}. Standard deviation over the "
            f"{len(shown.folds)} folds: {sd}."
        )
    error = f"± {100 * standard_error(shown):.2f} points"
    return f"Test accuracy by {shown.protocol}. Standard error from {shown.test_images:,} test images: {error}."


def _bars(one: Comparison) -> str:
    rows = []
    for words, css, result in (("pretrained", "fill", one.trained), ("random", "fill scratch", one.scratch)):
        if result is not None:
            rows.append(
                f'<span class="name">{words}</span><span class="track">'
                f'<span class="{css}" style="width:{100 * accuracy(result):.2f}%"></span>'
                f'<span class="chance" style="left:{100 * one.chance:.2f}%"></span></span>'
                f'<span class="value">{percent(accuracy(result), result.test_images)}</span>'
            )
    chance = percent(one.chance, one.shown.test_images)
    return f'<div class="bars">{"".join(rows)}<p class="key"><i></i>always naming the largest class: {chance}</p></div>'


def _not_evaluated(directory: Path) -> str:
    command = markup.code([shell_command("evaluate", directory)])
    return (
        '<section class="card"><p>Not evaluated yet. This scores the encoder and writes this page again:</p>'
        f"{command}</section>"
    )
