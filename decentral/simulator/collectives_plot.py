"""A picture of time against peers, one line per schedule. Needs matplotlib (`decentral[plot]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decentral.errors import ConfigError
from decentral.simulator.collectives import Row

WIDTH_INCHES, HEIGHT_INCHES = 6.0, 4.5
PNG_DPI = 150


def plot(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG: a panel per size, log-log; lines are estimates, crosses what executions took.

    ConfigError without matplotlib, or if the file cannot be written.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'decentral[plot]'") from error
    sizes = sorted({row.size_bytes for row in rows})
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(WIDTH_INCHES * len(sizes), HEIGHT_INCHES), squeeze=False
    )
    for panel, size in zip(panels[0], sizes, strict=True):
        of_size = sorted((row for row in rows if row.size_bytes == size), key=lambda r: r.peers)
        peers = [row.peers for row in of_size]
        for name in of_size[0].seconds:
            (line,) = panel.plot(peers, [row.seconds[name] for row in of_size], label=name)
            executed = [row for row in of_size if name in row.simulated_s]
            panel.plot(
                [row.peers for row in executed],
                [row.simulated_s[name] for row in executed],
                "x", color=line.get_color(), markersize=5,
            )  # fmt: skip
        panel.plot(
            peers, [row.seconds[row.chosen] for row in of_size],
            "o", color="black", fillstyle="none", markersize=9, label="chosen",
        )  # fmt: skip
        panel.set(
            xscale="log", yscale="log", xlabel="peers", ylabel="seconds",
            title=f"all-reduce of {_pretty(size)} (lines: estimate, ×: executed)",
        )  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.grid(visible=True, which="major", alpha=0.3)
        panel.legend()
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=PNG_DPI)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the plot: {error}") from error
    finally:
        pyplot.close(figure)


def _pretty(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MiB" if size_bytes >= 1 << 20 else f"{size_bytes / 1024:g} KiB"
