"""The lease ledger: no sample in two places, whatever is committed (I7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.peer.leases import LeaseLedger, count, covers, merged, without
from decentral.simulator.world import peer_id
from decentral.types import Contribution, Range

PEERS = [peer_id(index) for index in range(4)]


def test_grants_returned_ranges_first_then_new_ones() -> None:
    ledger = LeaseLedger(share=10).top_up(PEERS[:2])
    assert ledger.granted(PEERS[0]) == (Range(0, 10),)
    assert ledger.granted(PEERS[1]) == (Range(10, 20),)
    ledger = ledger.take_back(PEERS[0]).grant(PEERS[2], 15)
    assert ledger.granted(PEERS[2]) == (Range(0, 10), Range(20, 25))
    assert ledger.returned == ()


def test_consumed_samples_are_gone_and_the_rest_stays() -> None:
    ledger = LeaseLedger(share=10).top_up(PEERS[:1])
    part = Contribution(peer=PEERS[0], tokens=1, leases=(Range(2, 5),))
    ledger = ledger.consume([part]).top_up(PEERS[:1])
    assert ledger.granted(PEERS[0]) == (Range(0, 2), Range(5, 13))
    with pytest.raises(ValueError, match="not leased"):
        ledger.consume([part])


def test_overlapping_claim_of_one_contribution_is_refused() -> None:
    ledger = LeaseLedger(share=10).top_up(PEERS[:1])
    twice = Contribution(peer=PEERS[0], tokens=1, leases=(Range(0, 4), Range(2, 6)))
    assert not ledger.allows(twice)


def test_take_is_the_inverse_of_put() -> None:
    ledger = LeaseLedger(share=7).top_up(PEERS).take_back(PEERS[1])
    assert LeaseLedger.take(ledger.put()) == ledger


def test_without_cuts_holes() -> None:
    assert without((Range(0, 10),), (Range(0, 2), Range(4, 5), Range(9, 12))) == (
        Range(2, 4),
        Range(5, 9),
    )


STEPS = st.lists(
    st.tuples(st.sampled_from(["use", "remove", "enter", "undo"]), st.integers(0, 3)), max_size=60
)


@given(steps=STEPS, share=st.integers(1, 20))
def test_every_sample_is_in_exactly_one_place(steps: list[tuple[str, int]], share: int) -> None:
    ledger = LeaseLedger(share=share).top_up(PEERS[:1])
    members = [PEERS[0]]
    consumed: list[tuple[Range, ...]] = []
    for kind, index in steps:
        peer = PEERS[index]
        if kind == "enter" and peer not in members:
            members.append(peer)
        elif kind == "remove" and peer in members and len(members) > 1:
            members.remove(peer)
            ledger = ledger.take_back(peer)
        elif kind == "use" and peer in members:
            used = tuple(
                Range(one.start, one.start + max(1, len(one) // 2))
                for one in ledger.granted(peer)[:2]
            )
            ledger = ledger.consume([Contribution(peer=peer, tokens=1, leases=used)])
            consumed.append(used)
        elif kind == "undo" and consumed:
            ledger = ledger.give_back(consumed.pop())
        ledger = ledger.top_up(members)
        granted = [one for _, held in ledger.grants for one in held]
        everything = [*granted, *ledger.returned, *(one for used in consumed for one in used)]
        assert count(everything) == count(merged(everything)) == ledger.next
        assert all(count(ledger.granted(member)) >= share for member in members)
        assert not ledger.returned or covers(merged([Range(0, ledger.next)]), ledger.returned)
