"""``python -m pathlens`` and the ``pathlens`` command."""

from __future__ import annotations

import sys

from pathlens.cli import main

if __name__ == "__main__":
    sys.exit(main())
