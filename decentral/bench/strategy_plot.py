"""Pictures of a comparison of strategies. Needs matplotlib (`decentral[plot]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decentral.errors import ConfigError

WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES = 12.0, 0.27, 1.3
PNG_DPI = 150


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG: every row's loss with its interval and seeds; loss against bytes sent.

    ConfigError without matplotlib, or if the file cannot be written.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot, ticker
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'decentral[plot]'") from error
    height = MARGIN_INCHES + ROW_INCHES * max(8, len(results))
    figure, (losses, trade) = pyplot.subplots(1, 2, figsize=(WIDTH_INCHES, height))
    ordered = sorted(results, key=lambda result: -result["loss"])
    for at, result in enumerate(ordered):
        losses.errorbar(
            result["loss"], at, xerr=result["loss_ci95"] or 0, fmt="o", color="C0", capsize=3
        )
        losses.plot(result["losses"], [at] * len(result["losses"]), "|", color="gray")
    losses.set_yticks(range(len(ordered)), [_label(result) for result in ordered])
    losses.set(
        xlabel="validation loss, nats per byte",
        title="mean with its 95 % interval, and seeds",
    )
    losses.grid(visible=True, axis="x", alpha=0.3)
    for result in ordered:
        if not result["bytes_sent"]:
            continue
        mib = result["bytes_sent"] / 2**20
        trade.plot(mib, result["loss"], "o", color="C0" if result["strategy"] else "C1")
        trade.annotate(
            _label(result), (mib, result["loss"]), textcoords="offset points", xytext=(4, 3),
            fontsize=7,
        )  # fmt: skip
    trade.set(
        xscale="log", xlabel="MiB sent per peer", ylabel="validation loss",
        title="what the bytes buy",
    )  # fmt: skip
    trade.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    trade.xaxis.set_major_formatter("{x:g}")
    trade.xaxis.set_minor_formatter(ticker.NullFormatter())
    trade.margins(x=0.18)
    trade.grid(visible=True, which="major", alpha=0.3)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=PNG_DPI)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the plot: {error}") from error
    finally:
        pyplot.close(figure)


def _label(result: Mapping[str, Any]) -> str:
    return str(result["row"]) + (f", lr {result['lr']:g}" if result["lr"] is not None else "")
