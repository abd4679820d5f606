"""The audit of a churn run: correct logs pass, and logs that were broken by hand do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from churn_logs import PaperRun, lines

from decentral.churn.audit import Report, Settings, audit
from decentral.errors import ConfigError

Edit = Callable[[PaperRun], None]


def story(peers: int = 5) -> PaperRun:
    """Rounds, a kill and a return, late work, a freeze; the run is not over yet."""
    run = PaperRun(peers)
    run.rounds(5)
    run.kill("b")
    run.rounds(3)
    run.restart("b")
    run.round(["a", "c", "d"])
    run.rounds(4)
    number = run.freeze("c")
    run.rounds(3)
    run.thaw(number, "c")
    run.adopt("c", run.states[-1])
    run.rounds(3)
    return run


def verdict(run: PaperRun, folder: Path, settings: Settings | None = None) -> Report:
    run.end()
    return audit(run.write(folder), settings)


def only(report: Report, invariant: str, *words: str) -> None:
    """Nothing but this is broken, and what was found says so."""
    assert set(report.counts) == {invariant}, report.violations
    said = "\n".join(str(one) for one in report.violations)
    for word in words:
        assert word in said, said
    assert not report.held
    assert report.exit_status == 1
    assert report.verdict.startswith("BROKEN")


# ---------------------------------------------------------------------- what holds


def test_a_correct_run_passes_and_everything_was_looked_at(tmp_path: Path) -> None:
    report = verdict(story(), tmp_path)
    assert not report.violations
    assert report.held
    assert report.exit_status == 0
    assert report.verdict.startswith("held")
    checked = report.checked
    assert checked["sums"] == checked["commits"] == report.rounds == 23
    assert not checked["sums_unchecked"]
    assert checked["leases"] > 80
    assert report.faults == {"kill": 1, "stop": 1}
    assert report.longest_commit_gap_s < 1
    assert 0.5 < (report.goodput.ratio or 0) <= 1.05
    assert report.recovery_s["count"] == 2


def test_the_death_of_everybody_may_undo_what_only_the_dead_had(tmp_path: Path) -> None:
    run = story()
    back = run.states[-1].round - 2  # what was durable
    run.kill(*"abcde")
    held = run.states[back]
    run.states, run.counted, lost = run.states[: back + 1], run.counted[: back + 1], run.counted
    run.returned += [one for used in lost[back + 1 :] for one in used]
    for name in "abcde":
        run.restart(name)
    assert run.states[-1] is held
    run.roll_back(back)
    run.rounds(5)
    report = verdict(run, tmp_path)
    assert report.held, report.violations
    assert (report.rollbacks, report.undone) == (1, 2)
    assert report.goodput.wasted == 2 * 5 * 8


def test_a_rollback_that_somebody_asked_for(tmp_path: Path) -> None:
    run = story()
    run.fault("rollback")
    run.roll_back(run.states[-1].round - 7)
    run.rounds(9)
    report = verdict(run, tmp_path)
    assert report.held, report.violations
    assert report.undone == 7


def test_two_rollbacks_to_one_round_and_a_straggler(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(6)
    number = run.freeze("d")
    run.rounds(2)
    to = run.states[-1].round - 4
    for _ in range(2):
        run.fault("rollback")
        run.roll_back(to)
        run.rounds(3)
    run.thaw(number, "d")
    for _ in range(2):  # it hears of both only now
        run.tell("d", "rolled-back", lineage="L1", round=to, state_hash=run.states[to].hash)
    run.adopt("d", run.states[-1])
    run.rounds(2)
    report = verdict(run, tmp_path)
    assert report.held, report.violations
    assert report.rollbacks == 2


def test_who_was_away_during_a_rollback_comes_back_to_its_outcome(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(6)
    number = run.freeze("d")
    run.rounds(2)
    run.fault("rollback")
    run.roll_back(run.states[-1].round - 4)
    run.thaw(number, "d")
    run.adopt("d", run.states[-1])  # it tells no rollback, and now commits rounds anew
    run.rounds(5)
    report = verdict(run, tmp_path)
    assert report.held, report.violations


def test_a_fork_goes_on_from_what_its_members_hold(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(6)
    run.kill("c", "d")
    run.fork("L2", "a", "b")
    run.rounds(6)
    run.restart("c")
    run.rounds(3)
    report = verdict(run, tmp_path)
    assert report.held, report.violations
    assert report.lineages == 2
    assert report.rounds == 4 + 6 + 6 + 3
    assert report.checked["sums"] == report.rounds  # over the branch, too


def test_samples_without_ids(tmp_path: Path) -> None:
    run = story()
    for one in run.told("contribution"):
        one["leases"] = []
    for one in run.told("commit"):
        one["granted"] = []
        for part in one["contributions"]:
            part["leases"] = []
    report = verdict(run, tmp_path)
    assert report.held, report.violations
    assert report.checked["leases"] == 0
    assert report.goodput.useful > 0


def test_no_run_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"timeline\.jsonl"):
        audit(tmp_path)
    lines(tmp_path / "timeline.jsonl", [{"at": 1.0, "what": "start", "peer": "a", "pid": 7}])
    report = audit(tmp_path)
    assert {"I3", "log"} == set(report.counts)


# ---------------------------------------------------------------------- I1, I2


def test_i1_a_wrong_hash(tmp_path: Path) -> None:
    run = story()
    for kind in ("commit", "round"):
        run.event("d", kind, round=9)["state_hash"] = "ff" * 32
    only(verdict(run, tmp_path), "I1", "round 9 of lineage L1 has two hashes", "ffffffffffff", "d")


def test_i1_other_bits_under_the_same_hash(tmp_path: Path) -> None:
    run = story()
    run.event("d", "commit", round=9)["theta"][3] += 1e-7
    only(verdict(run, tmp_path), "I1", "d holds other parameters in round 9")


def test_i1_other_momentum_at_a_joiner(tmp_path: Path) -> None:
    run = story()
    run.events("b", "adopted")[-1]["momentum"][0] = 0.5
    only(verdict(run, tmp_path), "I1", "b holds other outer momentum")


def test_i1_a_joiner_adopts_something_else(tmp_path: Path) -> None:
    run = story()
    run.events("b", "adopted")[-1]["state_hash"] = "ee" * 32
    only(verdict(run, tmp_path), "I1", "b adopted eeeeeeeeeeee")


def test_i1_members_tell_different_contributors(tmp_path: Path) -> None:
    run = story()
    run.event("d", "commit", round=9)["contributions"].pop()
    only(verdict(run, tmp_path), "I1", "d and a tell different contributions of round 9")


def test_i2_an_acknowledged_round_is_lost(tmp_path: Path) -> None:
    """Everybody dies, and who comes back commits the last round afresh, without a rollback."""
    run = story()
    last = run.states[-1].round
    run.kill(*"abcde")
    run.states.pop()
    run.returned += run.counted.pop()
    for name in "abcde":
        run.restart(name)
    run.rounds(1)
    report = verdict(run, tmp_path)
    said = [str(one) for one in report.violations if one.invariant == "I2"]
    assert said, report.violations
    assert f"round {last} of lineage L1, acknowledged by a" in said[0]


def test_i2_a_peer_goes_back_in_one_life(tmp_path: Path) -> None:
    run = story()
    events = run.peers["c"].events
    events.append({**run.event("c", "round", round=9), "t": events[-1]["t"]})
    only(verdict(run, tmp_path), "I2", "c acknowledged round 9", "after round 23")


def test_i2_a_rollback_while_somebody_holds_more(tmp_path: Path) -> None:
    run = story()
    run.roll_back(run.states[-1].round - 1)
    run.rounds(2)
    only(verdict(run, tmp_path), "I2", "but a is a member, lives and holds round 23")


def test_i2_a_rollback_below_what_was_durable(tmp_path: Path) -> None:
    run = story()
    back = run.states[-1].round - 3
    run.kill(*"abcde")
    run.returned += [one for used in run.counted[back + 1 :] for one in used]
    run.states, run.counted = run.states[: back + 1], run.counted[: back + 1]
    for name in "abcde":
        run.restart(name)
    run.roll_back(back)
    run.rounds(2)
    only(verdict(run, tmp_path), "I2", "back to round 20, though round 21 was said to be durable")


def test_i2_a_fork_leaves_out_what_its_member_had_acknowledged(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(6)
    run.kill("c", "d")
    run.states.pop()
    run.returned += run.counted.pop()
    run.fork("L2", "a", "b")
    run.rounds(2)
    report = verdict(run, tmp_path)
    only(report, "I2", "L2 goes on from round 9 of L1, but its member a had acknowledged round 10")


# ---------------------------------------------------------------------- I6, I7


def recount(run: PaperRun, number: int, edit: Callable[[list[dict[str, object]]], None]) -> None:
    """Every member tells that round's contributions like this."""
    for one in run.told("commit", round=number):
        edit(one["contributions"])


def test_i6_a_contribution_twice_in_a_round(tmp_path: Path) -> None:
    run = story()
    recount(run, 9, lambda told: told.append(dict(told[0])))
    report = verdict(run, tmp_path)
    assert {"I6", "I7"} == set(report.counts)
    assert "round 9 of lineage L1 counts a 2 times" in str(report.violations)


def test_i6_work_that_an_earlier_round_had_counted(tmp_path: Path) -> None:
    run = story()
    for one in run.told("contribution") + run.told("commit"):
        one["leases"] = []  # no ids that would give it away
        for part in one.get("contributions", ()):
            part["leases"] = []
    first = run.event("d", "contribution", round=9)["delta"]
    run.event("d", "contribution", round=10)["delta"] = first
    report = verdict(run, tmp_path)
    said = " ".join(str(one) for one in report.violations)
    assert set(report.counts) == {"I6"}
    assert "round 10 of lineage L1 counts work of d that round 9 had counted" in said


def test_i6_a_part_of_a_contribution(tmp_path: Path) -> None:
    run = story()

    def half(told: list[dict[str, object]]) -> None:
        told[2]["tokens"] = 4

    recount(run, 9, half)
    only(verdict(run, tmp_path), "I6", "counts a part of what c offered: 4 tokens", "8 tokens")


def test_i6_a_round_of_nothing(tmp_path: Path) -> None:
    run = story()
    recount(run, run.states[-1].round, lambda told: told.clear())
    only(verdict(run, tmp_path), "I6", "counts nobody's work")


def test_i6_work_that_nobody_offered(tmp_path: Path) -> None:
    run = story()
    run.peers["d"].events.remove(run.event("d", "contribution", round=9))
    only(verdict(run, tmp_path), "I6", "round 9", "counts work of d, which had offered none")


@pytest.mark.parametrize(
    ("factor", "words"), [(0.0, "leaves out what c"), (2.0, "counts twice what c")]
)
def test_i6_the_sum_shows_what_was_really_added(tmp_path: Path, factor: float, words: str) -> None:
    """The commit names everybody once; the arithmetic was another."""
    run = story()
    number, (before, after) = 10, (run.states[9], run.states[10])
    offers = [run.event(name, "contribution", round=number) for name in "acde"]
    weights = [factor if name == "c" else 1.0 for name in "acde"]
    mean = sum(
        w * np.array(one["delta"], np.float32) for w, one in zip(weights, offers, strict=True)
    ) / sum(weights)
    momentum = 0.6 * before.momentum + mean
    theta = before.theta - 0.7 * (mean + 0.6 * momentum)
    for one in run.told("commit", round=number):
        assert one["theta"] == after.theta.tolist()
        one["theta"], one["momentum"] = theta.tolist(), momentum.tolist()
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I6"}
    assert f"round 10 of lineage L1 {words} contributed" in str(report.violations[0])


def test_i6_a_sum_that_is_nothing_in_particular(tmp_path: Path) -> None:
    run = story()
    for one in run.told("commit", round=10):
        one["theta"] = [value + 1e-4 for value in one["theta"]]
    report = verdict(run, tmp_path)
    assert "round 10 of lineage L1 is not the sum of what a, c, d, e" in str(report.violations[0])


def test_a_lossy_codec_is_said_and_not_summed(tmp_path: Path) -> None:
    run = story()
    run.timeline[[one["what"] for one in run.timeline].index("run")]["options"]["codec"] = "int8"
    report = verdict(run, tmp_path)
    assert report.held
    assert report.checked["sums"] == 0
    assert report.checked["sums_unchecked"] == {"the codec int8 is lossy": 23}


def test_i7_overlapping_leases(tmp_path: Path) -> None:
    run = story()
    shared = run.event("a", "contribution", round=9)["leases"]
    run.event("d", "contribution", round=10)["leases"] = shared

    def overlap(told: list[dict[str, object]]) -> None:
        told[[one["peer"] for one in told].index(run.peers["d"].id)]["leases"] = shared

    recount(run, 10, overlap)
    report = verdict(run, tmp_path)
    only(report, "I7", "round 10 of lineage L1 counts samples", "of d, of which round 9")


def test_i7_samples_that_nobody_has_any_more(tmp_path: Path) -> None:
    run = PaperRun(3)
    run.rounds(6)
    run.kill("c")
    run.rounds(1)
    run.restart("c")
    run.next_sample += 24  # never granted to anybody
    run.rounds(40)
    report = verdict(run, tmp_path, Settings(skip_rounds=10))
    only(report, "I7", "are skipped", "for 20 rounds")
    assert report.checked["skip_reviews"] > 0


def test_i7_samples_of_a_frozen_member_are_not_lost(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(6)
    run.freeze("d")
    run.rounds(40)
    report = verdict(run, tmp_path, Settings(skip_rounds=10))
    assert report.checked["skip_reviews"] > 0
    assert report.held, report.violations


def test_i7_what_a_rollback_returns_counts_again_and_once(tmp_path: Path) -> None:
    run = story()
    run.fault("rollback")
    run.roll_back(run.states[-1].round - 4)
    used = list(run.returned)
    run.rounds(6)
    again = {tuple(pair) for one in run.told("commit") for part in one["contributions"]
             for pair in part["leases"] if one["round"] > 19}  # fmt: skip
    assert used
    assert again
    assert verdict(run, tmp_path).held


def test_a_round_that_nobody_lived_to_tell(tmp_path: Path) -> None:
    """It is committed, its samples are consumed, and no log says so: nothing to be blamed for."""
    run = PaperRun(3)
    run.rounds(30)
    for peer in run.peers.values():
        peer.events = [
            one
            for one in peer.events
            if one["event"] not in ("commit", "round") or one["round"] != 9
        ]
    report = verdict(run, tmp_path, Settings(skip_rounds=5))
    assert report.held, report.violations
    assert report.checked["sums_unchecked"] == {"the state before is not known": 1}
    assert report.checked["skip_reviews"] == 0
