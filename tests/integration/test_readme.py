"""README's Python example, as it stands there, between two processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def example(readme: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1, "README has one Python example"
    return str(blocks[0])


def test_the_example(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(example((root / "README.md").read_text()))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def start(folder: str, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-u", str(script), *args],
            cwd=tmp_path / folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    with start("a") as first:
        assert first.stdout is not None
        line = first.stdout.readline()
        assert line.startswith("others: "), line + first.stdout.read()
        with start("b", line.split()[1]) as second:
            outputs = [process.communicate(timeout=150)[0] for process in (first, second)]
    assert first.returncode == 0 and second.returncode == 0, outputs
    states = [re.search(r"^state (\d+) (\w{64})$", output, re.MULTILINE) for output in outputs]
    assert all(states), outputs
    assert states[0].groups() == states[1].groups(), outputs  # type: ignore[union-attr]
    assert states[0].group(1) == "60"  # type: ignore[union-attr]
    assert (tmp_path / "a" / "final.safetensors").exists()
