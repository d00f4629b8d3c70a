"""Small pieces of HTML that several sections use. Callers pass text already escaped where it says `html`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

NOTHING = "—"
# Embeddings and overrides of the writing direction reorder the words after them; isolates (U+2066 to U+2069) do not.
OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e")


def text(foreign: object) -> str:
    """Foreign text as html: escaped, and what a page cannot hold (control characters, halves of surrogate pairs,
    overrides of the writing direction) made visible as `\\x1b`."""
    return escape("".join(_visible(c) for c in str(foreign)))


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in OVERRIDES
    return character.encode("unicode_escape").decode() if hidden else character


def name(foreign: object) -> str:
    """A name from the data as html; its writing direction does not reach the words around it."""
    return f"<bdi>{text(foreign)}</bdi>"


def code(lines: Iterable[str]) -> str:
    """Lines to be copied, such as commands."""
    return "<pre>" + "\n".join(text(line) for line in lines) + "</pre>"


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table in a box that scrolls sideways; a head cell that starts with `#` stands over numbers; rows are html."""
    cells = "".join(f'<th class="n">{text(h[1:])}</th>' if h[:1] == "#" else f"<th>{text(h)}</th>" for h in head)
    body = "".join(f"{row}\n" for row in rows)
    inside = f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>\n{inside}</table></div>'


def row(*html: str, css: str = "", words: int = 1) -> str:
    """A table row: the first `words` cells are words, the others numbers."""
    cells = "".join(f"<td>{cell}</td>" for cell in html[:words]) + numbers(*html[words:])
    return f'<tr class="{css}">{cells}</tr>' if css else f"<tr>{cells}</tr>"


def group_row(title: str, columns: int) -> str:
    """A row over the whole table that names the rows below it."""
    return f'<tr class="group"><th colspan="{columns}" scope="rowgroup">{text(title)}</th></tr>'


def numbers(*html: str) -> str:
    """Right-aligned table cells."""
    return "".join(f'<td class="n">{cell}</td>' for cell in html)


def beneath(html: str, small: str) -> str:
    """A cell with a second, smaller line of plain text; the first alone where there is nothing to add."""
    return f"{html}<br><small>{text(small)}</small>" if small else html


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; empty values are left out."""
    rows = (f"<dt>{text(what)}</dt><dd>{text(value)}</dd>" for what, value in pairs if value)
    return f"<dl>{''.join(rows)}</dl>"


def aside(words: str) -> str:
    """A remark under a table, plain text."""
    return f'<p class="aside">{text(words)}</p>'


def card(html: str) -> str:
    """A box."""
    return f'<div class="card">{html}</div>'


def folded(summary: str, html: str, *, opened: bool) -> str:
    """A part that a reader opens and closes, without a script."""
    return f"<details{' open' if opened else ''}><summary>{text(summary)}</summary>{html}</details>"


def warnings(notes: Sequence[str], css: str = "after") -> str:
    """Notes that a reader must not miss, plain text; empty without any."""
    rows = "".join(f'<li class="warn">{text(note)}</li>' for note in notes)
    return f'<ul class="{css}">{rows}</ul>' if rows else ""


def anchor(title: str) -> str:
    """The fragment of a heading: `what-was-run`."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"


def gain(words: str, fraction: float | None) -> str:
    """A difference, coloured by its sign."""
    css = "gain loss" if (fraction or 0.0) < 0 else "gain"
    return f'<span class="{css}">{text(words)}</span>'


def signed(number: float, digits: int) -> str:
    """`+0.0120`, `−3`: the sign always shown, the minus a typographer's."""
    return f"{number:+,.{digits}f}".replace("-", "−")


def short(number: float) -> str:
    """`800`, `2.47`: two digits behind the point at most."""
    return f"{number:,.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """`1 h 4 min`, `3 min 12 s`, `8.4 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
