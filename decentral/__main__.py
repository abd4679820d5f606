"""``python -m decentral`` is ``decentral``."""

from __future__ import annotations

import sys

from decentral.cli import main

if __name__ == "__main__":
    sys.exit(main())
