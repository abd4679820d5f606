"""What `decentral bench strategies` compares: strategies in one word, and circumstances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decentral.bench.training_peer import KNOWN
from decentral.errors import ConfigError
from decentral.strategies.named import parse
from decentral.strategies.outer import OuterOptimization

SYNC_EVERY = 15
"""H where a row does not say (the recipe's own)."""
SINGLE, DATA_PARALLEL = "single", "data-parallel"
"""Trained in one process (`decentral.baselines`)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    word: str = ""
    """The strategy; "" for a baseline."""
    slow: tuple[float, ...] = ()
    """Of the last peers: how many times as long their steps take."""

    @property
    def baseline(self) -> bool:
        return not self.word

    @property
    def strategy(self) -> OuterOptimization:
        return parse(self.word, KNOWN, **({} if "sync_every=" in self.word else DEFAULTS))

    @property
    def by_tokens(self) -> bool:
        """A round of a quorum holds fewer contributions than peers: such a run ends when it has
        seen as many samples as the others, after however many rounds."""
        return self.strategy.min_contributors > 0


DEFAULTS = {"sync_every": SYNC_EVERY}

ROWS: Sequence[Row] = (
    Row(SINGLE),
    Row(DATA_PARALLEL),
    Row("local-sgd", "diloco,outer_lr=1,outer_momentum=0"),
    Row("diloco-.9", "diloco,outer_momentum=0.9"),
    Row("diloco", "diloco,outer_momentum=0.6"),
    Row("int8", "diloco,outer_momentum=0.6,codec=int8"),
    Row("int4", "diloco,outer_momentum=0.6,codec=int4"),
    Row("fp4", "diloco,outer_momentum=0.6,codec=fp4"),
    Row("sign", "diloco,outer_momentum=0.6,codec=sign"),
    Row("sparseloco", "sparseloco,outer_lr=8,error_feedback=0.3"),
    Row("sparseloco-h5", "sparseloco,sync_every=5,outer_lr=8,error_feedback=0.3"),
    Row("sparseloco-paper", "sparseloco,outer_lr=1,error_feedback=0.95"),
    Row(
        "streaming",
        "streaming-diloco,sync_every=16,fragments=2,overlap_steps=0,outer_momentum=0.6,codec=fp32",
    ),
    Row(
        "streaming-2",
        "streaming-diloco,sync_every=16,fragments=2,overlap_steps=2,outer_momentum=0.6,codec=fp32",
    ),
    Row("async", "async-diloco"),
    Row("async-eager", "async-diloco,variant=eager,outer_lr=0.5,outer_momentum=0.3"),
    Row("async-eager-.9", "async-diloco,variant=eager,outer_lr=0.7,outer_momentum=0.9"),
    Row("async-delayed", "async-diloco,variant=delayed,outer_lr=0.5,outer_momentum=0"),
    Row("async-rebased", "async-diloco,variant=rebased,outer_lr=1,outer_momentum=0"),
    Row("decoupled", "decoupled-diloco"),
    Row("decoupled-slow", "decoupled-diloco", slow=(4, 10)),
    Row("diloco-slow", "diloco,outer_momentum=0.6", slow=(4, 10)),
    Row("lossy", "lossy-diloco,outer_momentum=0.6"),
    Row("diloco-h50", "diloco,sync_every=50,outer_momentum=0.6"),
    Row("diloco-h150", "diloco,sync_every=150,outer_momentum=0.6"),
)


def chosen(words: Sequence[str]) -> list[Row]:
    """Rows by name, and any strategy word as a row of its own; ``+slow=4,10`` after a word slows
    its last peers down."""
    named = {row.name: row for row in ROWS}
    rows = []
    for word in words:
        name, plus, more = word.partition("+slow=")
        row = named.get(name)
        if row is None:
            row = Row(name, name)
            try:
                assert row.strategy
            except ConfigError as error:
                known = ", ".join(named)
                says = f"{word!r} is neither a row ({known}) nor a strategy: {error.says}"
                raise ConfigError(says, phase="rows") from error
        if plus:
            row = Row(word, row.word, _factors(more))
        rows.append(row)
    return rows


def _factors(text: str) -> tuple[float, ...]:
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError:
        factors = ()
    if not factors or min(factors) < 1:
        raise ConfigError(f"slow wants factors of at least 1, not {text!r}", phase="rows")
    return factors
