"""``decentral bench diffusion``: experts in isolation against one model, at equal training FLOPs.

decentral bench diffusion --seeds 3 --work ~/diffusion
decentral bench diffusion --rows monolith k4 --steps 2000 --samples 2000 --json

    equal       the experts' and the router's training FLOPs together are the monolith's
    loss        validation flow matching, mean over dimensions, of the mixed velocity
    FID         between samples from fixed noise and test images that went through the latents, too,
                in a small classifier's features: not ImageNet FID, and comparable within this
                table only; `fid_pixels` is against the images themselves

All rows run in this process with the code that peers run: rounds are pure functions, so that the
mesh comes to the same bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from decentral.bench.diffusion_rows import ROWS, chosen
from decentral.bench.diffusion_trials import Trial
from decentral.bench.machine import about
from decentral.diffusion.images import installed, shapes
from decentral.diffusion.recipe import TINY, suited
from decentral.diffusion.training import one_thread
from decentral.errors import ConfigError

KEY = ("row", "seed", "steps", "samples", "images")
"""What a result is recognized by in the log."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", default=names, help=f"some of {' '.join(names)}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="(default 0)")
    parser.add_argument(
        "--steps", type=int, default=6000, help="the monolith's inner steps (default 6000)"
    )
    parser.add_argument(
        "--samples", type=int, default=10_000, help="per FID, from fixed noise (default 10000)"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR",
        help="keeps trained states, pictures and log.jsonl; what it holds is not made again",
    )  # fmt: skip
    parser.add_argument(
        "--images", choices=("installed", "shapes"), default="installed",
        help="Fashion-MNIST (or digits), or small shapes that are drawn here",
    )  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("seeds", "steps", "samples"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(args, name)}", phase="bench")
    rows = chosen(args.rows)
    with tempfile.TemporaryDirectory(prefix="decentral-diffusion-") as temporary:
        folder = args.work or Path(temporary)
        images = shapes(2000, 500) if args.images == "shapes" else installed()
        base = TINY if args.images == "shapes" else suited(images)
        trial = Trial(
            images=images, base=base, steps=args.steps, samples=args.samples, folder=folder
        )
        known = _read(folder / "log.jsonl")
        done = []
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for row in rows:
                key = dict(
                    zip(KEY, (row.name, seed, args.steps, args.samples, images.name), strict=True)
                )
                result = known.get(json.dumps(key))
                if result is None:
                    print(f"{row.name}, seed {seed}: {row.says}", file=sys.stderr, flush=True)
                    with one_thread():
                        result = {**key, **trial.measure(row, seed)}
                    with (folder / "log.jsonl").open("a") as file:
                        file.write(json.dumps(result) + "\n")
                done.append(result)
        return {
            "bench": "diffusion",
            "images": images.name,
            "steps": args.steps,
            "samples": args.samples,
            "classifier_accuracy": trial.classifier.accuracy(images),
            "floor": trial.floor(),
            "results": summaries(done),
            "runs": done,
            "machine": about(),
        }


def _read(log: Path) -> dict[str, dict[str, Any]]:
    if not log.exists():
        return {}
    found = {}
    for line in log.read_text().splitlines():
        try:
            result = json.loads(line)
            found[json.dumps({name: result[name] for name in KEY})] = result
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{log} holds a line that is no run: {error}", phase="log") from error
    return found


# ------------------------------------------------------------------ tables


def summaries(done: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One result per row and way: means over seeds, and of the ratios to the row's reference.

    A loss is compared with the reference's at *full*, a FID with that at *sticky*, seed by seed.
    """
    by_key = {(run["row"], run["seed"]): run for run in done}
    results = []
    for row in ROWS:
        runs = [run for run in done if run["row"] == row.name]
        ways = dict.fromkeys(way for run in runs for way in (*run["ways"], *run.get("losses", {})))
        for way in ways:
            fids = {run["seed"]: run["ways"].get(way, {}).get("fid") for run in runs}
            losses = {run["seed"]: run.get("losses", {}).get(way) for run in runs}
            references = {seed: by_key.get((row.against, seed), {}) for seed in fids}
            reference_fids = {
                seed: one.get("ways", {}).get("sticky", {}).get("fid")
                for seed, one in references.items()
            }
            reference_losses = {
                seed: one.get("losses", {}).get("full") for seed, one in references.items()
            }
            results.append(
                {
                    "row": row.name,
                    "way": way,
                    "against": row.against,
                    "seeds": len(runs),
                    "loss": _mean(losses),
                    "loss_ratio": _ratio(losses, reference_losses),
                    "fid": _mean(fids),
                    "fid_ratio": _ratio(fids, reference_fids),
                    "fids": list(fids.values()),
                    **{
                        name: _mean({r["seed"]: r["ways"].get(way, {}).get(name) for r in runs})
                        for name in ("fid_pixels", "kid", "precision", "recall")
                    },
                }
            )
    return results


def _mean(values: Mapping[int, float | None]) -> float | None:
    there = [value for value in values.values() if value is not None]
    return fmean(there) if there else None


def _ratio(
    values: Mapping[int, float | None], references: Mapping[int, float | None]
) -> float | None:
    return _mean(
        {
            seed: value / reference
            for seed, value in values.items()
            if value is not None and (reference := references.get(seed))
        }
    )


def show(report: dict[str, Any], console: Console) -> None:
    table = Table(
        title=f"{report['images']}, {report['steps']} steps, {report['samples']} samples: "
        "means over seeds"
    )
    heads = ("row", "way", "loss", "ratio", "FID", "ratio", "KID", "precision", "recall", "seeds")
    for at, head in enumerate(heads):
        table.add_column(head, justify="left" if at < 2 else "right", no_wrap=at < 2)
    for result in report["results"]:
        table.add_row(
            result["row"], result["way"],
            _figure(result["loss"], 4), _figure(result["loss_ratio"], 3),
            _figure(result["fid"], 2), _figure(result["fid_ratio"], 2),
            _figure(result["kid"], 4), _figure(result["precision"], 2),
            _figure(result["recall"], 2), str(result["seeds"]),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"FID is measured in the features of a classifier with "
        f"{100 * report['classifier_accuracy']:.1f} % of test images right; training images that "
        f"only went through the latents have {report['floor']['fid']:.2f}. "
        "Ratios are to the row's reference (see `against` in --json), seed by seed."
    )


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
