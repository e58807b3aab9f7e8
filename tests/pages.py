"""Read HTML strictly: what is not closed, escaped or reachable without a network fails."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "hr", "img", "link"}
INTERACTIVE = ("onclick", "onload", "onerror", "onmouseover")


class Page(HTMLParser):
    """The elements of a page, whose tags have to match.

    Attributes:
        elements: tag and attributes of every element, in order.
        texts: text outside of scripts and styles, in order.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"
        ids = [a["id"] for _, a in self.elements if "id" in a]
        assert len(ids) == len(set(ids)), "an id stands twice"
        for tag, attributes in self.elements:
            assert not set(attributes) & set(INTERACTIVE), (tag, attributes)
            for name in ("src", "href", "action", "data"):
                assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
            if tag == "th":
                assert attributes.get("scope") in ("row", "col")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)
