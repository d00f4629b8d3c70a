"""Small pieces of HTML that several sections use. Callers pass text already escaped where it says `html`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table in a box that scrolls sideways; a head cell that starts with `#` stands over numbers; rows are html."""
    cells = "".join(f'<th class="n">{escape(h[1:])}</th>' if h[:1] == "#" else f"<th>{escape(h)}</th>" for h in head)
    body = "".join(f"{row}\n" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def numbers(*html: str) -> str:
    """Right-aligned table cells."""
    return "".join(f'<td class="n">{cell}</td>' for cell in html)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; empty values are left out."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs if value)
    return f"<dl>{''.join(rows)}</dl>"


def section(title: str, html: str) -> str:
    """A heading with one card."""
    return f'<section>\n<h2>{escape(title)}</h2>\n<div class="card">{html}</div>\n</section>'


def gain(text: str, fraction: float | None) -> str:
    """A difference, coloured by its sign."""
    css = "gain loss" if (fraction or 0.0) < 0 else "gain"
    return f'<span class="{css}">{escape(text)}</span>'


def short(number: float) -> str:
    """`800`, `2.47`: two digits behind the point at most."""
    return f"{number:,.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """`1 h 4 min`, `3 min 12 s`, `8.4 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
