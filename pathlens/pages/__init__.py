"""One self-contained HTML page of the results in run folders, to be opened from disk."""

from __future__ import annotations

from pathlens.pages.page import report_page

__all__ = ["report_page"]
