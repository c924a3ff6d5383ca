"""Run folders: tables, figures and a manifest, which states the provenance."""

from __future__ import annotations

from pathlens.report.environment import provenance
from pathlens.report.folder import LARGEST_MANIFEST, MANIFEST, check_run_folder, write_run

__all__ = ["LARGEST_MANIFEST", "MANIFEST", "check_run_folder", "provenance", "write_run"]
