"""A page of HTML, read strictly."""

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags balance and gathers ids, links, attributes and the rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[tuple[str, str]] = set()
        self.rows: dict[str, dict[str, list[str]]] = {}
        self._table, self._line, self._cell = "", [], False
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        known = {name: value or "" for name, value in attrs}
        self.attributes |= {(name, value) for name, value in known.items()}
        self.ids += [known["id"]] if "id" in known else []
        self.links += [known["href"]] if "href" in known else []
        if tag == "table":
            self._table = known.get("id", "")
        elif tag == "tr":
            self._line = []
        elif tag in ("td", "th"):
            self._line.append("")
            self._cell = True
        elif tag == "span" and self._cell:
            self._line[-1] += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in {"path", "rect"}, f"<{tag}/> is not closed by this in HTML"
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes {self.open[-3:]}"
        if tag in ("td", "th"):
            self._cell = False
        elif tag == "tr" and self._line:
            self.rows.setdefault(self._table, {}).setdefault(self._line[0], self._line[1:])

    def handle_data(self, data):
        if self._cell and self.open[-1] != "a":
            self._line[-1] += data
