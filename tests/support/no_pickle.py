"""A peer that ends with status 77 at the first object that is unpickled in its process.

python -P -m no_pickle decentral.bench.sleep_peer --json …
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

CAUGHT = 77


def watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "pickle.find_class":
        os._exit(CAUGHT)


if __name__ == "__main__":
    sys.addaudithook(watch)
    module, *words = sys.argv[1:]
    sys.exit(importlib.import_module(module).main(words))
