"""report.html: one self-contained page, light and dark, for desktop, phone and paper; foreign text is escaped."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..evaluation.comparison import Comparison, percent, points, standard_error
from .content import ReportContent
from .markup import duration, gain, short
from .provenance import export_facts, reproduce, run_facts
from .stylesheet import STYLESHEET
from .tables import class_table, methods_table, protocol_notes, published_table


@dataclass(frozen=True)
class DrawnPicture:
    """A picture as the page embeds it: `png` by theme name (`light`, `dark`)."""

    section: str
    caption: str
    png: Mapping[str, bytes]


def render_page(content: ReportContent, drawn: Sequence[DrawnPicture]) -> str:
    """The page as one HTML text."""
    name = content.run.directory.resolve().name
    sections = dict.fromkeys(picture.section for picture in drawn)
    parts = [
        _header(content, name),
        _hero(content.headline) if content.headline else _not_evaluated(content.run.directory),
        methods_table(content.comparisons),
        published_table(content),
        *(_gallery(title, [picture for picture in drawn if picture.section == title]) for title in sections),
        class_table(content.headline),
        protocol_notes(content.comparisons),
        run_facts(content),
        export_facts(content.export),
        reproduce(content),
    ]
    version = escape(str(content.run.environment.get("version", "")))
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)} — simclr-engine report</title>\n<style>{STYLESHEET}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n<footer>simclr-engine {version}. This file needs nothing beside it.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _header(content: ReportContent, name: str) -> str:
    run, env = content.run, content.run.environment
    finished = bool(env.get("finished"))
    pill = f'<span class="pill{"" if finished else " off"}">{"finished" if finished else "not finished"}</span>'
    took = f" in <b>{duration(float(env['seconds']))}</b>" if env.get("seconds") else ""
    device = escape(str(env.get("device_name") or env.get("device") or "an unknown device"))
    images = int(content.data.get("images") or 0)
    return (
        f'<header>\n<p class="eyebrow">Pretraining report</p>\n<h1>{escape(name)}{pill}</h1>\n'
        f'<p class="lead">Recipe <b>{escape(run.recipe.name)}</b>: {escape(run.recipe.model.arch)}, pretrained without '
        f"labels for <b>{short(content.epochs)} epochs</b> on {images:,} images of <b>{escape(content.data_name)}</b> "
        f"({run.image_size} px){took} on {device}.</p>\n</header>"
    )


def _hero(one: Comparison) -> str:
    shown, n = one.shown, one.shown.test_images
    whose = "random" if one.trained is None else "pretrained"
    versus = '<p class="versus">the random encoder has not been evaluated</p>' if one.trained else ""
    if one.difference is not None and one.scratch is not None:
        apart = gain(points(one.difference, n), one.difference)
        versus = f'<p class="versus">random encoder {percent(one.scratch.accuracy, n)}: {apart}</p>'
    error = f"± {100 * standard_error(shown):.2f} points"
    return (
        f'<section class="card hero">\n<div><div class="big">{percent(shown.accuracy, n)[:-2]}<small> %</small></div>\n'
        f'<p class="what">{escape(one.name)}, {whose} encoder</p>{versus}</div>\n{_bars(one)}\n'
        f'<p class="protocol">Test accuracy by {escape(shown.protocol)}. Standard error from {n:,} test images: '
        f"{error}.</p>\n</section>"
    )


def _bars(one: Comparison) -> str:
    rows = []
    for words, css, result in (("pretrained", "fill", one.trained), ("random", "fill scratch", one.scratch)):
        if result is not None:
            rows.append(
                f'<span class="name">{words}</span><span class="track">'
                f'<span class="{css}" style="width:{100 * result.accuracy:.2f}%"></span>'
                f'<span class="chance" style="left:{100 * one.chance:.2f}%"></span></span>'
                f'<span class="value">{percent(result.accuracy, result.test_images)}</span>'
            )
    chance = percent(one.chance, one.shown.test_images)
    return f'<div class="bars">{"".join(rows)}<p class="key"><i></i>always naming the largest class: {chance}</p></div>'


def _not_evaluated(directory: Path) -> str:
    command = escape(f"simclr-engine evaluate {shlex.quote(str(directory))}")
    return (
        '<section class="card"><p>Not evaluated yet. This scores the encoder and writes this page again:</p>'
        f"<pre>{command}</pre></section>"
    )


def _gallery(title: str, drawn: Sequence[DrawnPicture]) -> str:
    figures = []
    for picture in drawn:
        light, dark = (f"data:image/png;base64,{base64.b64encode(picture.png[t]).decode()}" for t in ("light", "dark"))
        caption = escape(picture.caption).replace(" %", "&nbsp;%")
        figures.append(
            f'<figure class="card"><picture><source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{caption}" src="{light}"></picture><figcaption>{caption}</figcaption></figure>'
        )
    return f'<section>\n<h2>{escape(title)}</h2>\n<div class="pictures">{"".join(figures)}</div>\n</section>'
