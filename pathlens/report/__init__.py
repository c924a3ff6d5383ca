"""Results on disk: tables, figures and a manifest; and the facts that a manifest states."""

from __future__ import annotations

from pathlens.report.facts import provenance
from pathlens.report.folder import LARGEST_MANIFEST, MANIFEST, check_run_folder, write_run

__all__ = ["LARGEST_MANIFEST", "MANIFEST", "check_run_folder", "provenance", "write_run"]
