"""Strategies from one word."""

from __future__ import annotations

import pytest

import decentral
from decentral.bench.strategy_rows import ROWS, chosen
from decentral.bench.training_peer import KNOWN, LossyDiLoCo
from decentral.errors import ConfigError
from decentral.strategies.named import STRATEGIES, parse, spell
from decentral.types import Contribution, Range

WORDS = [
    "diloco,sync_every=15,outer_lr=0.7,outer_momentum=0.6,codec=int4",
    "async-diloco,outer_lr=0.5,variant=delayed,momentum_clip=0.1",
    "sparseloco,error_feedback=0.9,clip_to_median=off",
    "streaming-diloco,fragments=2,overlap_steps=0",
    "decoupled-diloco,dynamic_steps=no,grace_s=1e-1,momentum_every=4",
    "data-parallel,weights=equal",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_and_back(word: str) -> None:
    strategy = parse(word)
    assert parse(spell(strategy)) == strategy
    assert len(spell(strategy).split(",")) <= len(word.split(","))


def test_every_strategy_of_the_library_has_a_name() -> None:
    kinds = {one for name in decentral.__all__ if name.endswith(("DiLoCo", "LoCo", "Parallel"))
             for one in [getattr(decentral, name)]}  # fmt: skip
    assert set(STRATEGIES) == kinds
    for kind in STRATEGIES:
        assert parse(kind.name) == kind()
        assert spell(kind()) == kind.name


def test_values_are_read_by_their_type() -> None:
    strategy = parse("async-diloco,sync_every=7,outer_lr=1,momentum_clip=none,variant=rebased")
    assert strategy == decentral.AsyncDiLoCo(sync_every=7, outer_lr=1.0, variant="rebased")
    assert isinstance(strategy.outer_lr, float)
    assert parse("sparseloco,clip_to_median=off") == decentral.SparseLoCo(clip_to_median=False)
    assert parse("diloco,outer_lr=0.5", sync_every=15, outer_lr=0.9) == decentral.DiLoCo(
        sync_every=15, outer_lr=0.5
    )


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("adam", "use diloco, streaming-diloco, async-diloco"),
        ("", "there is no strategy ''"),
        ("diloco,tempo=3", "sync_every, outer_lr, outer_momentum, codec"),
        ("diloco,outer_lr", "OPTION=VALUE"),
        ("diloco,outer_lr=fast", "outer_lr is a number, not 'fast'"),
        ("diloco,sync_every=1.5", "sync_every is a whole number"),
        ("diloco,error_feedback=some", "a number or none"),
        ("diloco,outer_lr=1,outer_lr=2", "given twice"),
        ("sparseloco,clip_to_median=maybe", "on or off"),
        ("diloco,codec=zip", "codec is one of"),
        ("diloco,outer_lr=nan", "outer_lr is in"),
    ],
)
def test_what_is_wrong_is_said(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        parse(word)


def test_every_row_can_be_made() -> None:
    for row in chosen([row.name for row in ROWS]):
        assert row.baseline or parse(spell(row.strategy), KNOWN) == row.strategy
    assert chosen(["diloco"])[0].strategy.sync_every == 15
    own, slow = chosen(["diloco,sync_every=30", "decoupled+slow=4,10"])
    assert own.strategy.sync_every == 30
    assert slow.slow == (4, 10) and slow.strategy.name == "decoupled-diloco"


@pytest.mark.parametrize("word", ["nothing", "diloco+slow=0.5", "diloco+slow=x"])
def test_a_row_that_cannot_be_made(word: str) -> None:
    with pytest.raises(ConfigError):
        chosen([word])


def test_a_coin_loses_its_share_and_is_the_same_for_all() -> None:
    strategy = LossyDiLoCo(drop=0.25)
    work = [
        Contribution(peer="a", tokens=8, leases=(Range(i * 10, i * 10 + 10),)) for i in range(2000)
    ]
    lost = [strategy.weight_of(one) == 0 for one in work]
    assert 0.2 < sum(lost) / len(lost) < 0.3
    assert lost == [LossyDiLoCo(drop=0.25).weight_of(one) == 0 for one in work]
    assert lost != [LossyDiLoCo(drop=0.25, coin=1).weight_of(one) == 0 for one in work]
