"""`decentral bench strategies` in small: real processes, every kind of row, no figure judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent


def compare(folder: Path, *words: str, status: int = 0) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "bench", "strategies"]
        + ["--recipe", "tiny_recipe:recipe", "--peers", "2", "--seeds", "1", "--json", *words],
        capture_output=True, text=True, timeout=120, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(RECIPES), "TINY_STEP_S": "0.001"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return (json.loads(done.stdout) if done.stdout else {}), done.stderr


def test_rows_are_compared(tmp_path: Path) -> None:
    rows = ["single", "diloco", "streaming", "decoupled+slow=3"]
    words = ["--rows", *rows, "--steps", "45", "--log", "log.jsonl", "--plot", "plot.png"]
    report, _ = compare(tmp_path, *words)
    assert report["bench"] == "strategies" and set(report["machine"]) >= {"cores", "commit"}
    assert [one["row"] for one in report["results"]] == rows
    single, diloco, streaming, decoupled = report["results"]
    assert single["strategy"] == "" and single["tokens"] * 2 == diloco["tokens"]
    assert diloco["difference"] is None and streaming["difference"] is not None
    assert diloco["rounds"] == 3 and diloco["bytes_sent"] > 0
    assert diloco["runs"][0]["steps_of_each"] == [45, 45]
    assert decoupled["tokens"] >= diloco["tokens"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    log = (tmp_path / "log.jsonl").read_text()
    assert len(log.splitlines()) == 4
    again, _ = compare(tmp_path, *words[:-2])  # all of it is in the log
    assert again["results"] == report["results"]
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_row_that_does_not_exist(tmp_path: Path) -> None:
    _, says = compare(tmp_path, "--rows", "dilco", status=1)
    assert "there is no strategy 'dilco'" in says and "async-eager" in says
