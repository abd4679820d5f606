"""Means with their intervals."""

from __future__ import annotations

import pytest

from decentral.bench.intervals import Interval, paired, t_975
from decentral.bench.strategies import summaries


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (4, 2.7764), (20, 2.0860), (21, 2.0796), (30, 2.0423), (120, 1.9799)],
)
def test_quantiles(freedom: int, quantile: float) -> None:
    assert t_975(freedom) == pytest.approx(quantile, abs=2e-3)


def test_an_interval() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.303 / 3**0.5)
    assert str(found) == "2.000 ± 2.484"
    assert str(Interval.of([1.5])) == "1.500"
    with pytest.raises(ValueError, match="two"):
        t_975(0)


def test_pairing_takes_out_what_a_seed_does_to_all() -> None:
    reference = {0: 1.0, 1: 2.0, 2: 3.0}
    found = paired({0: 1.1, 1: 2.1, 2: 3.1, 9: 0.0}, reference)
    assert found is not None and found.count == 3
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(0, abs=1e-9)
    assert paired({4: 1.0}, reference) is None


def test_rows_are_summed_up_by_learning_rate() -> None:
    done = [
        {
            "row": row, "lr": lr, "seed": seed, "loss": seed + shift, "strategy": row,
            "tokens": 1, "rounds": 2, "seconds": 3.0, "bytes_sent": 4,
        }
        for seed in (0, 1)
        for lr in (None, 0.1)
        for row, shift in (("a", 0.0), ("b", 0.5))
    ]  # fmt: skip
    first, second, *others = summaries(done, against="a")
    assert (first["row"], first["lr"], first["difference"]) == ("a", None, None)
    assert (second["row"], second["loss"], second["difference"]) == ("b", 1.0, 0.5)
    assert second["losses"] == [0.5, 1.5] and second["seeds"] == 2
    assert [one["lr"] for one in others] == [0.1, 0.1]
