"""How Sphinx makes ``site/`` of this folder: ``make docs``."""

import subprocess
import sys

from pathlens import __version__

project = "pathlens"
release = __version__
html_title = f"pathlens {__version__}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "Figure"}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]

# What a docstring refers to must be on the page; types of other packages need not be.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]


def with_commands(_app, page, source):
    """Put what the commands declare below the text of their page."""
    if page == "cli-reference":
        typer = [sys.executable, "-m", "typer", "pathlens.cli.entry", "utils", "docs", "--name", "pathlens"]
        source[0] += "\n" + subprocess.run(typer, check=True, capture_output=True, text=True).stdout


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", with_commands)
