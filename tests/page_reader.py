"""An HTML page as its elements, attributes and words."""

from html.parser import HTMLParser

VOID = {"meta", "rect", "line", "br", "link", "img"}


class Reader(HTMLParser):
    """Refuses elements that do not nest; keeps elements, attributes and text."""

    def __init__(self, content: str):
        super().__init__()
        self.open, self.elements, self.attributes, self.words = [], [], [], []
        self.feed(content)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"{tag} closes {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)
