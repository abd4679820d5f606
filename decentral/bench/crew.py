"""The workers of one group: linked to each other, numbered rounds, replaced when they die."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decentral.bench.workers import Place, Workers, soon
from decentral.errors import DecentralError


class Crew:
    """Native workers as a group whose rank order is the places' order."""

    def __init__(
        self,
        places: Sequence[Place],
        *,
        encrypt: bool = True,
        streams: int = 0,
        congestion: str = "",
        silence_limit_s: float = 5.0,
    ) -> None:
        self.workers = Workers(
            "decentral.bench.native_worker",
            places,
            ["--encrypt", "on" if encrypt else "off", "--streams", str(streams)]
            + ["--congestion", congestion, "--silence-limit-s", str(silence_limit_s)],
        )
        self.ranks = list(range(len(places)))
        self._epoch = 0
        self._round = 0
        try:
            self._form({rank: self.ranks[:rank] for rank in self.ranks})
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.ranks)

    def prepare(self, size_bytes: int) -> None:
        """Every member has a source and a result of this size."""
        self.workers.ask(self.ranks, do="prepare", count=max(1, size_bytes // 4))

    def measure(self) -> dict[str, Any]:
        """All members measure the network; what they agreed on."""
        self._round += 1
        return self.workers.ask(self.ranks, do="measure", round=self._round)[0]

    def begin(self, of_rank: dict[int, dict[str, Any]] | None = None, **how: Any) -> float:
        """Tell everybody to reduce, some of them with options of their own; when it starts."""
        self._round += 1
        start_at = soon(len(self.ranks))
        for rank in self.ranks:
            self.workers.tell(
                [rank], do="reduce", round=self._round, start_at=start_at, ranks=self.ranks,
                **{**how, **(of_rank or {}).get(rank, {})},
            )  # fmt: skip
        return start_at

    def end(self, ranks: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The answers to `begin`, of all or of some."""
        return self.workers.hear(self.ranks if ranks is None else ranks)

    def reduce(self, **how: Any) -> list[dict[str, Any]]:
        """One all-reduce that must succeed; one answer per member, in rank order."""
        self.begin(**how)
        answers = self.end()
        for rank, answer in zip(self.ranks, answers, strict=True):
            if not answer["ok"]:
                raise DecentralError(f"rank {rank}: {answer['says']}", phase="bench")
        return answers

    def without(self, rank: int) -> None:
        """Go on as a group of the others."""
        self.ranks = [other for other in self.ranks if other != rank]
        self._form({})

    def replace(self, rank: int) -> None:
        """A new peer in that rank's place, linked to all the others."""
        self.workers.replace(rank)
        others = [other for other in range(len(self.workers)) if other != rank]
        self.ranks = sorted([*others, rank])
        self._form({rank: others})

    def close(self) -> None:
        self.workers.close()

    def _form(self, dials: dict[int, list[int]]) -> None:
        """A new view of `ranks`, in which some dial others."""
        self._epoch += 1
        addresses = self.workers.addresses
        for rank in self.ranks:
            self.workers.tell(
                [rank], do="connect", epoch=self._epoch,
                roster=[addresses[member] for member in self.ranks],
                dial=[addresses[other]["peer"] for other in dials.get(rank, ())],
            )  # fmt: skip
        self.workers.hear(self.ranks)
