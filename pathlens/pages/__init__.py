"""Self-contained HTML pages, to be opened from disk: of the results in run folders, and of an unraveled view."""

from __future__ import annotations

from pathlens.pages.graphs import graph_html, graph_page
from pathlens.pages.page import report_page

__all__ = ["graph_html", "graph_page", "report_page"]
