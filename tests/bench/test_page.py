"""Pages say the same in Markdown and in HTML, and HTML needs nothing but itself."""

from html.parser import HTMLParser

import pytest

from quantplan.bench.page import Figure, Section, Table, html, markdown, table

SVG = '<?xml version="1.0"?>\n<svg viewBox="0 0 1 1"><path d="M0 0"/></svg>\n'
SECTIONS = [
    Section("", ("Some **bold** and `code` <here>, [a link](https://github.com).",)),
    Section("Table", (Table(("Name", "µs"), (("a | b", "1.5"), ("`c`", "2"))), "- one\n- two")),
    Section("Plot", (Figure("plot", "what it shows", lambda: SVG),)),
]


def test_a_table_has_its_figures_to_the_right():
    assert table(("A", "B", "C"), [("x", "1", "2")]) == "| A | B | C |\n|---|---:|---:|\n| x | 1 | 2 |"


def test_a_bar_in_a_cell_begins_no_other():
    assert table(("A", "B"), [("x | y", "1")]).splitlines()[-1] == "| x \\| y | 1 |"


def test_markdown_names_figures_as_files():
    text = markdown(SECTIONS, "some/folder")
    assert text.startswith("Some **bold**")
    assert "## Table\n\n| Name | µs |" in text
    assert text.endswith("## Plot\n\n![what it shows](some/folder/plot.svg)")


class Tags(HTMLParser):
    """Checks that every element that is opened is closed, and remembers what is fetched from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.seen = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "srcset") or (tag == "link")]
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "path":
            assert self.open.pop() == tag


@pytest.fixture
def tags():
    found = Tags()
    found.feed(html("A & B", SECTIONS))
    return found


def test_html_is_whole_and_fetches_nothing(tags):
    assert tags.open == []
    assert tags.fetched == []
    assert {"table", "ul", "svg", "strong", "code", "a"} <= set(tags.seen)


def test_html_escapes_what_is_text():
    text = html("A & B", SECTIONS)
    assert "<title>A &amp; B</title>" in text
    assert "&lt;here&gt;" in text
    assert '<a href="https://github.com">a link</a>' in text
    assert "<?xml" not in text
