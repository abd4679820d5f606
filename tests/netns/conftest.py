"""The fixture `lan`: hosts of their own for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lan import Lan, why_not


@pytest.fixture
def lan() -> Iterator[Lan]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made = Lan()
    try:
        yield made
    finally:
        made.close()
