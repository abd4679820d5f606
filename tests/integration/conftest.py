"""Meshes in processes of their own, and in this one, that end with their test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mesh_members import Crew


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    try:
        yield made
    finally:
        made.close()
