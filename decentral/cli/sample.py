"""``decentral sample``: have a run's experts make images (decentralized diffusion).

decentral sample --join 198.51.100.7:4242#AZ0x… --classes 0-9 --n 64 --out grid.png
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from decentral.cli import visit
from decentral.errors import ConfigError, DiskError

if TYPE_CHECKING:
    from decentral.diffusion.program import DiffusionProgram
    from decentral.serving.messages import Classes
    from decentral.serving.sampler import Sampled

MAX_IMAGES = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    visit.add_arguments(parser, "diffusion")
    add = parser.add_argument
    add("--classes", metavar="0-9", help="of the images, in turn: 3, 1,4,7 or 0-9 (default: all)")
    add("--n", type=int, default=64, help="how many images (default 64)")
    add("--out", type=Path, required=True, metavar="FILE.png", help="one picture of all")
    add(
        "--mode", choices=("full", "top-1", "top-2", "threshold", "sticky"), default="sticky",
        help="which experts a sample asks; sticky: one, drawn once, which is exact without "
        "guidance (default)",
    )  # fmt: skip
    add("--steps", type=int, default=20, help="from noise to image (default 20)")
    add("--solver", choices=("euler", "heun"), default="euler", help="default: euler")
    add("--guidance", type=float, default=1.0, metavar="G", help="by class; 1: none (default)")
    add(
        "--experts", choices=("auto", "local", "remote"), default="auto",
        help="remote: noisy images go to the peers that keep the experts; local: weights come "
        "here; auto: whichever is quicker, as measured (default)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from decentral.diffusion import grid
    from decentral.diffusion.program import DiffusionProgram
    from decentral.diffusion.sampling import How
    from decentral.serving.sampler import Sampler

    if not 1 <= args.n <= MAX_IMAGES:
        raise ConfigError(f"--n is from 1 to {MAX_IMAGES}, not {args.n}")
    how = How(
        way=args.mode,
        solver=args.solver,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
    )
    warnings.showwarning = lambda message, *_: _warn(str(message))
    with visit.visit(args) as run:
        if not isinstance(run.program, DiffusionProgram):
            raise ConfigError(f"recipe {args.recipe!r} has no experts that paint", phase="sample")
        classes = _classes(args.classes, args.n, run.program)
        sampler = Sampler(
            run.program, run.parts, run.keepers, run.log, way=args.experts, warn=_warn
        )
        sampled = sampler.sample(args.n, classes, how, seed=args.seed)
    try:
        grid.write(args.out, sampled.images, math.ceil(math.sqrt(args.n)))
    except OSError as error:
        raise DiskError(f"{args.out} cannot be written: {error}") from error
    _tell(args, sampled, run.parts.fetched_bytes)
    return 0


def _classes(words: str | None, n: int, program: DiffusionProgram) -> Classes | None:
    """[n]: those asked for, each as often as the others, side by side."""
    import numpy as np

    if not program.config.conditional:
        if words is not None:
            raise ConfigError("this run knows no classes: leave --classes out")
        return None
    last = program.images.classes - 1
    wanted: list[int] = []
    for word in (f"0-{last}" if words is None else words).split(","):
        first, dash, end = word.strip().partition("-")
        if not first.isdecimal() or (dash and not end.isdecimal()):
            raise ConfigError(f"--classes is like 3, 1,4,7 or 0-9, not {words!r}")
        wanted += range(int(first), min(int(end or first), last) + 1)  # 0-9: as many as there are
    if not wanted or max(wanted) > last:
        raise ConfigError(f"this run's classes are 0 to {last}, not {words}")
    return np.sort(np.resize(np.array(wanted, np.int64), n))


def _tell(args: argparse.Namespace, sampled: Sampled, fetched_bytes: int) -> None:
    if args.json:
        digest = hashlib.sha256(sampled.images.tobytes()).hexdigest()
        done = {
            "event": "done",
            "out": str(args.out),
            "images": len(sampled.images),
            "sha256": digest,
            "experts": sampled.way,
            "lost": list(sampled.lost),
            "seconds": round(sampled.seconds, 3),
            "fetched_bytes": fetched_bytes,
        }
        print(json.dumps(done), flush=True)
        return
    print(
        f"{args.out}: {len(sampled.images)} images in {sampled.seconds:.2f} s, experts "
        f"{sampled.way}, {fetched_bytes:,} bytes fetched"
    )


def _warn(says: str) -> None:
    print(f"! {says}", file=sys.stderr, flush=True)
