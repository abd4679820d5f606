"""``decentral generate``: have a run's paths go on with a text (DiPaCo).

decentral generate --join 198.51.100.7:4242#AZ0x… --prompt "def main("
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from decentral.cli import visit
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.serving.writer import Piece


def add_arguments(parser: argparse.ArgumentParser) -> None:
    visit.add_arguments(parser, "dipaco")
    add = parser.add_argument
    add("--prompt", required=True, metavar="TEXT", help="what is to be gone on with")
    add("--tokens", type=int, default=256, metavar="N", help="bytes to write (default 256)")
    add(
        "--window", type=int, default=64, metavar="W",
        help="bytes until the router is asked again which path goes on (default 64)",
    )  # fmt: skip
    add("--temperature", type=float, default=0.8, help="0: the likeliest byte (default 0.8)")
    add(
        "--paths", choices=("auto", "local", "remote"), default="auto",
        help="local: fetch a path's parts and run it here; remote: have a peer that keeps it run "
        "it; auto: remote unless it is here, local if no peer answers (default)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from decentral.dipaco.program import DiPaCo
    from decentral.serving.writer import Wish, Writer

    wish = Wish(
        length=args.tokens, window=args.window, temperature=args.temperature, seed=args.seed
    )
    prompt = args.prompt.encode(errors="surrogateescape")
    with visit.visit(args) as run:
        if not isinstance(run.program, DiPaCo):
            raise ConfigError(f"recipe {args.recipe!r} has no paths that write", phase="generate")
        writer = Writer(run.program, run.parts, run.keepers, run.log, way=args.paths, warn=_warn)
        show = _Show(as_json=args.json)
        for piece in writer.write(prompt, wish):
            show(piece)
        show.end(run.parts.fetched_bytes)
    return 0


class _Show:
    """Text as it comes, and what it took."""

    def __init__(self, *, as_json: bool) -> None:
        self._json, self._began = as_json, time.monotonic()
        self._first_s = 0.0
        self._text = bytearray()
        self._paths: list[tuple[str, str]] = []

    def __call__(self, piece: Piece) -> None:
        self._first_s = self._first_s or time.monotonic() - self._began
        self._text += piece.data
        if (piece.path, piece.way) not in self._paths[-1:]:
            self._paths.append((piece.path, piece.way))
        if self._json:
            _say("text", text=piece.data.decode(errors="replace"), path=piece.path, way=piece.way)
        else:
            sys.stdout.buffer.write(piece.data)
            sys.stdout.buffer.flush()

    def end(self, fetched_bytes: int) -> None:
        rate = len(self._text) / max(1e-9, time.monotonic() - self._began)
        used = ", ".join(f"{path} ({way})" for path, way in self._paths)
        if self._json:
            _say(
                "done",
                bytes=self._text.hex(),
                sha256=hashlib.sha256(self._text).hexdigest(),
                paths=[list(one) for one in self._paths],
                first_ms=round(1000 * self._first_s, 1),
                tokens_per_s=round(rate, 1),
                fetched_bytes=fetched_bytes,
            )
            return
        print(
            f"\n{used}; first token {1000 * self._first_s:.0f} ms, {rate:.0f} tokens/s, "
            f"{fetched_bytes:,} bytes fetched",
            file=sys.stderr,
        )


def _say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def _warn(says: str) -> None:
    print(f"! {says}", file=sys.stderr, flush=True)
