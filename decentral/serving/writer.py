"""A prompt goes on: routed, written by a path, and routed anew every W bytes.

    prompt ─▶ ranked paths ─▶ the first that answers ─▶ 1, 2, 4, … bytes, W in all ─┐
                 ▲                                                                  │
                 └───────────── the context, re-encoded by whoever is next ◀────────┘

A path answers from here (its model is put together from parts) or from a peer that keeps it. A path
that nobody answers for falls back to the next by the router's score. What is committed when the
text begins is what it is written with, as long as that can be had; else what is newest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from decentral.dipaco.path_round import ROUTER
from decentral.dipaco.program import DiPaCo
from decentral.errors import CallError, ConfigError, DecentralError, StateError
from decentral.peer.views_log import LogState
from decentral.serving.keepers import Asked
from decentral.serving.messages import GENERATE, MAX_BYTES, MAX_TEMPERATURE, TextRequest
from decentral.serving.parts import Parts, Version
from decentral.serving.paths import Paths
from decentral.serving.text import continuation

WAYS = ("auto", "local", "remote")
CALL_S, BYTE_S = 10.0, 0.25
"""A call may take so long, and so much longer for each byte."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bytes of a text."""

    data: bytes
    path: str
    way: str
    """"local" or "remote"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a text is to be written."""

    length: int = 256
    """Bytes."""
    window: int = 64
    """W: bytes until the context is routed anew."""
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.window < 1:
            raise ConfigError("a text has at least one byte, and so has a window")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ConfigError(
                f"temperature is from 0 to {MAX_TEMPERATURE:g}, not {self.temperature}"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"a seed is from 0 to 2^63 − 1, not {self.seed}")


class Writer:
    """Somebody's who follows a run. Use it from one thread."""

    def __init__(
        self,
        program: DiPaCo,
        parts: Parts,
        keepers: Asked,
        log: Callable[[], LogState],
        *,
        way: str = "auto",
        warn: Callable[[str], None] = lambda says: None,
    ) -> None:
        """`way`: "local", "remote", or "auto": local where the path is here already, else remote,
        and local where no peer answers. `warn` hears of each path that was fallen back from."""
        if way not in WAYS:
            raise ConfigError(f"paths are {', '.join(WAYS)}, not {way!r}")
        self.paths = Paths(program, parts)
        self._keepers, self._log, self._way, self._warn = keepers, log, way, warn
        self._pinned = log()

    def write(self, prompt: bytes, wish: Wish) -> Iterator[Piece]:
        """As it comes. ConfigError for a prompt that cannot be read; StateError where no path
        answers."""
        self.paths.check(prompt)
        self._pinned = self._log()
        text, place = prompt, 0
        while place < wish.length:
            end = min(place + wish.window, wish.length)
            ranked = list(self._ranked(text))
            size = 1
            while place < end:
                piece = self._next(ranked, text, place, min(size, end - place, MAX_BYTES), wish)
                yield piece
                text, place, size = text + piece.data, place + len(piece.data), 2 * size

    # ------------------------------------------------------------------ one piece

    def _next(self, ranked: list[str], text: bytes, place: int, size: int, wish: Wish) -> Piece:
        """From the first path that answers; those before it are out of this window."""
        last: DecentralError = StateError("there are no paths", phase="serve")
        while ranked:
            cell = ranked[0]
            pinned = self._pinned
            try:
                return self._ask(cell, text, place, size, wish)
            except (CallError, StateError) as error:
                last = error
            if self._newer(cell, pinned):
                continue  # what it was asked for is history
            ranked.pop(0)
            self._warn(f"{cell} does not answer, the next one goes on: {last.says}")
        raise StateError(f"no path goes on with this text: {last.says}", phase="serve")

    def _ask(self, cell: str, text: bytes, place: int, size: int, wish: Wish) -> Piece:
        versions = self.paths.versions(cell, self._pinned)
        request = TextRequest(
            path=cell,
            versions=versions,
            context=text[-self.paths.room :],
            place=place,
            count=size,
            temperature=float(wish.temperature),
            seed=wish.seed,
        )
        if self._way == "local" or (self._way == "auto" and self.paths.here(cell, versions)):
            return self._local(request)
        try:
            timeout_s = CALL_S + BYTE_S * size
            data = self._keepers.ask(cell, GENERATE, request.pack(), timeout_s)
            if len(data) != size or any(one >= self.paths.vocabulary for one in data):
                raise CallError(f"an answer of {len(data)} bytes for {size}", phase="body")
            return Piece(data, cell, "remote")
        except CallError:
            if self._way == "remote":
                raise
        return self._local(request)

    def _local(self, request: TextRequest) -> Piece:
        return Piece(answer(self.paths, request), request.path, "local")

    # ------------------------------------------------------------------ what is committed

    def _ranked(self, text: bytes) -> tuple[str, ...]:
        while True:
            pinned = self._pinned
            try:
                return self.paths.ranked(text, pinned)
            except StateError:
                if not self._newer(ROUTER, pinned):
                    raise

    def _newer(self, cell: str, pinned: LogState) -> bool:
        """Whether there is something newer of this cell; then it is used from here on."""
        cells = {cell} if cell == ROUTER else {one for one, _ in self.paths.needs(cell)}
        now = self._log()
        if all(Version.newest(now, one) == Version.newest(pinned, one) for one in cells):
            return False
        self._pinned = now
        return True


def answer(paths: Paths, request: TextRequest) -> bytes:
    """What is asked for, by a path that is put together here."""
    return continuation(
        paths.model(request.path, request.versions),
        request.context,
        request.count,
        room=paths.room,
        place=request.place,
        temperature=request.temperature,
        seed=request.seed,
    )
