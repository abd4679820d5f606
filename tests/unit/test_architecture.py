"""House rules, as tests: which way imports point, what may never be used, how long a file gets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEAVES = {"decentral.types", "decentral.errors", "decentral.version", "decentral.failpoints"}
BELOW = {"decentral.failpoints": {"decentral.errors", "decentral._native"}}
"""What a leaf may know all the same."""
FOLDERS = ("collectives", "peer", "decentral")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where an arrow points"
            module = node.module or ""
            if module == "decentral":
                yield from (f"decentral.{alias.name}" for alias in node.names)
            else:
                yield module


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "decentral"}


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    """collectives and peer know the leaves and native code; only decentral/ knows both."""
    folder = path.relative_to(ROOT).parts[0]
    if f"decentral.{path.stem}" in LEAVES and path.parent == ROOT / "decentral":
        assert ours(path) <= BELOW.get(f"decentral.{path.stem}", set())
    elif folder in ("peer", "collectives"):
        allowed = ("decentral._native", f"decentral.{folder}", *LEAVES)
        for name in ours(path):
            assert any(name == a or name.startswith(a + ".") for a in allowed), name
    for name in imports(path):
        assert name.split(".")[0] not in FOLDERS[:2], f"import decentral.{name}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "peer").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_mesh_is_free_of_torch_and_only_its_runtime_has_clocks(path: Path) -> None:
    modules = {name.split(".")[0] for name in imports(path)}
    assert "torch" not in modules
    if "runtime" not in path.parts and path.name != "control.py":
        assert not modules & {"asyncio", "socket", "threading", "uvloop", "time", "select"}


AUDIT = sorted((ROOT / "decentral" / "churn" / "audit").rglob("*.py"))


@pytest.mark.parametrize("path", AUDIT, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_audit_shares_no_code_with_what_it_checks(path: Path) -> None:
    for name in ours(path):
        assert name == "decentral.errors" or name.startswith("decentral.churn.audit"), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_runs_foreign_code(path: Path) -> None:
    modules = set(imports(path))
    assert not modules & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "np.load", "yaml.load"}, called


@pytest.mark.parametrize(
    "path",
    [
        *FILES,
        *(p for p in (ROOT / "native").rglob("*") if p.suffix in (".cc", ".h")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_one_idea_per_file(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
