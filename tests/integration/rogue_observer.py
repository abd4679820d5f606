"""An observer by its credential that trains all the same: what the others must not allow.

python rogue_observer.py --join WORD …      otherwise as `decentral peer`
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from decentral.cli import peer
from decentral.errors import DecentralError
from decentral.peer.runtime import card


class Liar(card.MembershipCard):
    """Believes that it may train."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.role = "train"


if __name__ == "__main__":
    from decentral.peer.runtime import mesh

    mesh.MembershipCard = Liar  # type: ignore[misc]
    parser = argparse.ArgumentParser()
    peer.add_arguments(parser)
    try:
        sys.exit(peer.run(parser.parse_args()))
    except DecentralError as error:
        print(f"rogue: {error}", file=sys.stderr)
        sys.exit(1)
