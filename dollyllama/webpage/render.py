"""Pages of HTML that need nothing else: no network, no server, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent


def render_page(folder: Path, values: Mapping[str, Any], **filters: Callable[..., str]) -> str:
    """Return the page that ``folder`` has the template (page.html.jinja), style (page.css) and
    script (page.js) of, each on top of what all pages share.

    The template extends base.html.jinja; values and filters: what it names. Values are escaped;
    scripts of others cannot run, as the page allows its own alone, by its digest (Content Security
    Policy).
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    script = _read(folder, "js")
    return environment.get_template("page.html.jinja").render(
        values,
        style=Markup(_read(folder, "css")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _read(folder: Path, ending: str) -> str:
    """What all pages share, and then the folder's own."""
    paths = (_HERE / f"base.{ending}", folder / f"page.{ending}")
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def json_for_script(data: Any) -> Markup:
    """JSON to stand in a script element, whatever texts it holds: no "<" can end the element."""
    return Markup(json.dumps(data, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c"))
