"""Batches of one peer that is granted a list of leases, one after the other, and no run."""

from __future__ import annotations

from typing import Any

from decentral.data import LeasedData
from decentral.leases import LeaseBook
from decentral.types import Range


def batches_of(
    dataset: Any,
    book: LeaseBook,
    leases: list[tuple[Range, ...]],
    *,
    num_workers: int,
    batch_size: int = 4,
) -> LeasedData:
    def refill() -> bool:
        book.stepped()
        book.counted(book.used)
        book.grant(leases.pop(0) if leases else ())
        return bool(book.granted)

    state = {"over": False}

    def more() -> bool:
        state["over"] = not refill()
        return not state["over"]

    return LeasedData(
        dataset,
        book,
        batch_size=batch_size,
        seed=5,
        num_workers=num_workers,
        refill=more,
        finished=lambda: state["over"],
    )
