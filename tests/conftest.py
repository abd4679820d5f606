"""Shared by all tests: where things are, and peers that end with their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Peers

from decentral.cli.fork_server import ForkServer

ALONE = frozenset(
    f"test_{name}"
    for name in (
        *("agreement", "bench", "churn", "crowd_run", "everything", "failpoints", "hostile"),
        *("large_buffers", "state_transfer", "survival"),
    )
)
"""Modules whose tests measure, or strike by the clock: `make test` gives them the machine."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        if folder == "netns" or (folder != "unit" and item.path.stem in ALONE):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: for tests that read files, never for imports."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def fork_server(root: Path) -> Iterator[ForkServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root / "tests" / "support"))
        server = ForkServer("forked_cli")
    with server:
        yield server


@pytest.fixture
def peers(tmp_path: Path, fork_server: ForkServer) -> Iterator[Peers]:
    made = Peers(tmp_path, fork_server.launch)
    try:
        yield made
    finally:
        for peer in made.all:
            peer.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" and report.failed and "peers" in getattr(item, "funcargs", {}):
        item.funcargs["peers"].show()
    return report
