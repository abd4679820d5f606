"""``decentral demo dipaco`` and ``diffusion``, at the size of a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("what", ["dipaco", "diffusion"])
def test_a_demo_kills_a_peer_and_ends_with_a_table(what: str, tmp_path: Path) -> None:
    recipe = f"decentral.{what}.recipe:tiny_recipe"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "decentral", "demo", what, "--recipe", recipe,
         "--no-baselines", "--keep", str(tmp_path), "--json"],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["verdict"] == "held"
    assert report["killed"] == "peer-1"
    assert report["hashes_equal"]
    if what == "dipaco":
        found = report["perplexity"]
        assert found["bound: each document to its best path"] <= found["routed once"] < 64
        assert sum(map(sum, report["domains"].values())) == 80  # 20 documents of each language
    else:
        assert 0 < report["validation loss"]["four experts, full"] < 2
        picture = (tmp_path / "samples.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 1000
