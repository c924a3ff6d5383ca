"""What all pages share: one file with its own style and script, and a policy that allows nothing else.

The page loads nothing. Its Content-Security-Policy allows its own two blocks of style and script by their hashes and
pictures that stand in the page, and no more, so that text of a user could not run even if it became markup.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pathlens.errors import RunError, UsageError
from pathlens.pages.encode import script_json
from pathlens.version import __version__

_ENDINGS = (".html", ".htm")


def checked_target(out: str | os.PathLike[str], example: str) -> Path:
    """Where a page is to be written.

    Raises:
        RunError: it is a folder.
        UsageError: it does not end with ``.html``.
    """
    target = Path(out)
    if "\0" in target.name:
        raise UsageError(f"{str(target)!r} is no name for a page; leave the null character out")
    if os.path.isdir(target):
        raise RunError(f"{target} is a folder; give the page a file name, such as {target / example}")
    if target.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{target} is no name for a page; let it end with .html")
    return target


def rendered(template: str, styles: Sequence[str], scripts: Sequence[str], data: Any, **values: Any) -> bytes:
    """The page as UTF-8: text by a template that escapes everything, data as JSON that nothing can break out of.

    Args:
        template: its file; it places ``policy``, ``style``, ``script`` and ``data``.
        styles: files of the style.
        scripts: files of the script, in order.
        data: plain data for the scripts.
        **values: what else the template says.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = ("\n".join(map(_static, names)) for names in (styles, scripts))
    text = environment.from_string(_static(template)).render(
        version=__version__,
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(script_json(data)),
        **values,
    )
    # lone surrogates, which JSON can hold and UTF-8 cannot
    return text.encode("utf-8", "replace")


def _static(name: str) -> str:
    return resources.files("pathlens.pages").joinpath("static", name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
