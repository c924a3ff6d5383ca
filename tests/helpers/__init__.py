"""What several files of tests share: small networks, slow and obviously right oracles, files, and run folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The root of the repository."""
