"""Which domain went where. Needs matplotlib (`decentral[plot]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decentral.errors import ConfigError

CELL_INCHES, MARGIN_INCHES = 0.55, 1.6
PNG_DPI = 150


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG: per run with several paths, the share of each domain's validation documents
    that each path got. ConfigError without matplotlib, or if the file cannot be written."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'decentral[plot]'") from error
    # Replicas share their modules: only runs whose router has a choice are of interest.
    routed = [one for one in results if "one_dead" in one]
    if not routed:
        raise ConfigError("no row of this run has several paths: there is nothing to plot")
    widths = [len(next(iter(one["domains"].values()))) for one in routed]
    height = MARGIN_INCHES + CELL_INCHES * len(routed[0]["domains"])
    figure, axes = pyplot.subplots(
        1,
        len(routed),
        figsize=(sum(MARGIN_INCHES + CELL_INCHES * width for width in widths), height),
        width_ratios=widths,
        squeeze=False,
    )
    for axis, result in zip(axes[0], routed, strict=True):
        counts = np.array(list(result["domains"].values()), float)
        shares = counts / counts.sum(1, keepdims=True)
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axis.set_xticks(range(shares.shape[1]))
        axis.set_yticks(range(len(result["domains"])), result["domains"])
        axis.set(xlabel="path", title=f"{result['row']}, seed {result['seed']}")
        for row, column in np.argwhere(shares >= 0.05):
            share = shares[row, column]
            axis.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7,
                color="white" if share > 0.5 else "black",
            )  # fmt: skip
    figure.suptitle("where each domain's documents went, in %")
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=PNG_DPI)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the plot: {error}") from error
    finally:
        pyplot.close(figure)
