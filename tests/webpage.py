"""What every page of HTML is held to, and a browser to open it in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "</script><img src=x onerror=\"document.title='gone'\"><!-- & {{ 7 * 7 }} ']]>"


class Elements(HTMLParser):
    """Every element with its attributes, and what stands in those that hold raw text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.raw: dict[str, str] = {}
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "rect", "line", "circle", "polygon", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            kind = self.found[-1][1].get("type") or self.open[-1]
            self.raw[kind] = self.raw.get(kind, "") + data
        else:
            self.text.append(data)


def check_that_nothing_hostile_is_alive(html: str, *, shown: int) -> None:
    """Every element is closed and is the page's own; HOSTILE is text, ``shown`` times at least."""
    elements = Elements(html)
    assert elements.open == []
    tags = [tag for tag, _ in elements.found]
    assert "img" not in tags
    assert tags.count("script") == 2
    assert not any(name.startswith("on") for _, attrs in elements.found for name in attrs)
    assert sum(text.count(HOSTILE) for text in elements.text) >= shown


def check_that_nothing_is_asked_of_the_network(html: str) -> None:
    elements = Elements(html)
    for _, attrs in elements.found:
        assert not attrs.keys() & {"src", "srcset", "action", "data"}
        assert str(attrs.get("href", "#")).startswith("#")
    assert "url(" not in elements.raw["style"]
    assert "@import" not in elements.raw["style"]
    assert "default-src 'none'" in html


def check_that_figures_have_titles_and_tables_have_heads(html: str) -> None:
    elements = Elements(html).found
    for place, (tag, attrs) in enumerate(elements):
        if tag == "svg" and attrs.get("role") == "img":
            assert elements[place + 1][0] == "title"
    heads = [attrs for tag, attrs in elements if tag == "th"]
    assert heads
    assert all(attrs.get("scope") in ("col", "row") for attrs in heads)
    tables = sum(tag == "table" for tag, _ in elements)
    assert tables == sum(tag == "caption" for tag, _ in elements)


def open_in_browser(html: str, folder: Path) -> str:
    """The page's elements as a browser has them once its scripts have run, and run they have."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: there is no chromium")
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [chromium, *flags, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    # Set in the page's last line: everything before it went well.
    assert 'data-ready="yes"' in done.stdout
    return done.stdout


def open_with_foreign_script(html: str, folder: Path) -> str:
    """The same, where a script that is not the page's own must not run."""
    foreign = "<script>document.documentElement.dataset.foreign = 'yes'</script></body>"
    dom = open_in_browser(html.replace("</body>", foreign), folder)
    assert "data-foreign" not in dom
    return dom


def notes_of(driver: str, html: str, folder: Path) -> Any:
    """What a script has written into the page's ``data-notes`` after using its controls."""
    # The page's own policy keeps foreign scripts out, this one too.
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    driven = opened.replace("</body>", f"<script>{driver}</script></body>")
    found = re.search(r'data-notes="([^"]*)"', open_in_browser(driven, folder))
    assert found is not None
    return json.loads(unescape(found[1]))
