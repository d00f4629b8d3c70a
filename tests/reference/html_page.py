"""A page as a parser sees it: tags that close in order, words, attributes; and what every page of ours must keep to."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "source", "br", "link", "hr", "input"}
PNG = "data:image/png;base64,"


class Page(HTMLParser):
    """Checks that tags close in order; collects words, sources and the attributes of every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every tag of this name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def section(self, anchor: str) -> Page:
        """The part of the page with this id."""
        found = re.search(rf'<section id="{anchor}">.*?</section>', self.html, re.DOTALL)
        assert found, f"no section {anchor}"
        return Page(found[0])

    def check(self) -> None:
        """Needs nothing beside it, runs nothing, and says what its pictures show; links stay on the page."""
        outside_pictures = re.sub(rf"{PNG}[A-Za-z0-9+/=]+", "", self.html)
        assert not re.search(r"@import|url\(", outside_pictures)
        assert not any(ord(c) < 32 and c not in "\n\t" for c in outside_pictures)
        anchors = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(anchors) == len(set(anchors))
        for tag, attributes in self.tags:
            assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base", "source", "u")
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "srcset", "href", "action", "poster", "data"):
                    local = name == "href" and str(value).startswith("#") and str(value)[1:] in anchors
                    assert local or str(value).startswith(PNG)
            if tag == "img":
                assert len(str(attributes["alt"])) > 20
