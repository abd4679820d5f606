"""The audit's view of time and processes: gaps (I3), leaks (I4), ends (I5), and reading logs."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from churn_logs import PERIOD_S, PaperRun, lines
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.churn.audit import Auditor, Report, Settings, audit
from decentral.churn.audit.gaps import percentiles
from decentral.churn.audit.samples import RangeSet, common, without


def verdict(run: PaperRun, folder: Path, rules: Settings | None = None) -> Report:
    run.end()
    return audit(run.write(folder), rules)


def said(report: Report) -> str:
    return "\n".join(str(one) for one in report.violations)


# ---------------------------------------------------------------------- I3


def test_i3_a_long_gap_with_everybody_well(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.lapse(12)
    run.rounds(5)
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I3"}
    assert "no commit in lineage L1 for more than 10 s" in said(report)
    assert "a, b, c" in said(report)
    assert report.longest_commit_gap_s == pytest.approx(12 + PERIOD_S, abs=0.05)


def test_i3_a_gap_that_goes_on_at_the_end(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.lapse(12)
    assert set(verdict(run, tmp_path).counts) == {"I3"}


@pytest.mark.parametrize("survivors", [2, 3])
def test_i3_needs_a_majority_that_is_up(tmp_path: Path, survivors: int) -> None:
    """Frozen members are members: two of four are no quorum, three are."""
    run = PaperRun(4)
    run.rounds(5)
    number = run.freeze(*"abcd"[survivors:])
    run.lapse(15)
    run.thaw(number, *"abcd"[survivors:])
    run.rounds(3)
    report = verdict(run, tmp_path)
    assert report.held == (survivors == 2), said(report)
    if survivors == 2:
        assert report.longest_commit_gap_s < 1
        assert report.healthy_s < report.seconds - 14


@pytest.mark.parametrize("sides", [("ab", "cd"), ("abc", "d")])
def test_i3_needs_a_majority_that_reaches_each_other(
    tmp_path: Path, sides: tuple[str, str]
) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.note("reach", groups=[list(side) for side in sides])
    run.lapse(15)
    run.note("reach", groups=[])
    run.rounds(3)
    assert verdict(run, tmp_path).held == (len(sides[0]) == 2)


@pytest.mark.parametrize(
    ("pairs", "healthy"),
    [
        ([["d", "a"], ["d", "b"], ["d", "c"]], True),  # one that nobody hears: three are left
        ([["a", "b"]], True),  # not transitive: a, c, d reach each other
        ([["a", "b"], ["c", "d"]], False),  # no three do
    ],
)
def test_i3_one_way_and_non_transitive_cuts(
    tmp_path: Path, pairs: list[list[str]], healthy: bool
) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.note("cut", pairs=pairs)
    run.lapse(15)
    run.note("cut", pairs=[])
    run.rounds(3)
    assert verdict(run, tmp_path).held == (not healthy)


def test_i3_counts_from_when_the_majority_was_whole(tmp_path: Path) -> None:
    """Nine seconds frozen and nine seconds to come back are no gap of eighteen."""
    run = PaperRun(4)
    run.rounds(5)
    number = run.freeze("c", "d")
    run.lapse(9)
    run.thaw(number, "c", "d")
    run.lapse(9)
    run.rounds(3)
    report = verdict(run, tmp_path)
    assert report.held, said(report)
    assert 9 <= report.longest_commit_gap_s < 10
    assert report.recovery_s["after_lost_quorum"]["count"] == 1


def test_i3_who_left_is_no_quorum_of_those_who_stayed(tmp_path: Path) -> None:
    """A rolling restart leaves a view of one, who is frozen; those outside know, and wait."""
    run = PaperRun(4)
    run.rounds(5)
    number = run.freeze("d")
    run._view(["d"])
    for name in "abc":
        run._tell_view(name, "left")
    run.lapse(15)
    run.thaw(number, "d")
    run.lapse(9)
    run.round()
    report = verdict(run, tmp_path)
    assert report.held, said(report)
    assert 9 < report.longest_commit_gap_s < 10


def test_i3_a_paused_run_owes_nothing(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    number = run.fault("pause")
    run.lapse(30)
    run.note("healed", id=number)
    run.lapse(5)
    run.rounds(3)
    report = verdict(run, tmp_path)
    assert report.held, said(report)
    assert report.longest_commit_gap_s == pytest.approx(5 + PERIOD_S, abs=0.05)


def test_i3_a_lineage_that_everybody_left_owes_nothing(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.fork("L2", "a", "b")
    run.rounds(30)
    for name in "cd":  # they had lost to L2
        run.tell(name, "fault", kind="merge", peer=None,
                 says="Lineages L1 and L2 have met: L2 has more committed work.")  # fmt: skip
    run.lapse(20)
    run.rounds(1)
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I3"}
    assert "no commit in lineage L2" in said(report)
    assert "no commit in lineage L1" not in said(report)


def test_i3_a_peer_that_never_comes_back_in(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.kill("d")
    run.rounds(3)
    run.restart("d")
    run.members.remove("d")  # it listens, and nothing more
    run.rounds(300)
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I3"}
    assert re.search(r"d is up and in reach, .* no round for 9\d s", said(report))


def test_i3_what_the_driver_saw(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.note("violation", invariant="I3", says="after 30 s 3 of 4 peers are up")
    report = verdict(run, tmp_path)
    assert said(report) == "I3: after 30 s 3 of 4 peers are up"


def test_recovery_ends_with_a_commit_that_owes_nothing_to_the_dead(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    run.fault("kill", ["d"])
    run.round()  # d's work was already on its way
    run.peers["d"].up = False
    run.note("exit", peer="d", pid=run.peers["d"].pid, status=-9, expected=True, says="")
    run.faults += 1
    run.note("fault", id=run.faults, kind="kill", peers=["d"], detail={})
    run.lapse(2.0)
    run.rounds(3)
    recovery = verdict(run, tmp_path).recovery_s
    assert recovery["count"] == 2
    assert recovery["max"] == pytest.approx(2.0, abs=0.1)
    assert recovery["by_kind"]["kill"]["count"] == 2


def test_goodput_counts_what_is_not_undone(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(20)
    run.fault("rollback")
    run.roll_back(run.states[-1].round - 10)
    run.rounds(10)
    report = verdict(run, tmp_path)
    assert report.goodput.wasted == 10 * 4 * 8
    assert report.goodput.useful == 20 * 4 * 8
    assert report.goodput.ratio == pytest.approx(20 / 30, abs=0.07)
    total = sum(report.goodput.curve) * report.goodput.bin_s
    assert total == pytest.approx(report.goodput.useful, rel=1e-3)


# ---------------------------------------------------------------------- I4


@pytest.mark.parametrize(("what", "per_s"), [("fds", 0.2), ("threads", 0.1), ("rss_kib", 400.0)])
def test_i4_a_leak(tmp_path: Path, what: str, per_s: float) -> None:
    run = PaperRun(3)
    run.rounds(3)
    for name in "abc":
        run.sample(name, 300, **({what: per_s} if name == "b" else {}))
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I4"}
    assert len(report.violations) == 1
    assert re.search(r"b \(process \d+\) leaks", said(report))
    assert report.leaks["judged"] == 3
    assert [one["what"] for one in report.leaks["found"]] == [what]


def test_i4_a_plateau_is_no_leak(tmp_path: Path) -> None:
    run = PaperRun(3)
    run.rounds(3)
    run.sample("a", 300)
    for one in run.samples:
        grown = min(one["at"] - run.now, 120) / 120
        one["rss_kib"] += int(80_000 * grown)
        one["fds"] += int(30 * grown)
    report = verdict(run, tmp_path)
    assert report.held, said(report)
    assert report.leaks["judged"] == 1


def test_i4_a_short_life_is_not_judged_but_counts_in_the_trend(tmp_path: Path) -> None:
    run = PaperRun(3)
    run.rounds(3)
    run.sample("a", 60, fds=1.0)
    report = verdict(run, tmp_path)
    assert report.held
    assert (report.leaks["processes"], report.leaks["judged"]) == (1, 0)
    fds = report.leaks["trends"]["fds"]
    assert (fds["processes"], fds["growing"]) == (1, 1.0)
    assert fds["per_hour"] == pytest.approx(3600, rel=0.1)


# ---------------------------------------------------------------------- I5


def ended(run: PaperRun, name: str, status: int, says: str) -> None:
    run.peers[name].up = False
    run.note("exit", peer=name, pid=run.peers[name].pid, status=status, expected=False, says=says)
    run.members.remove(name)
    run.rounds(2)


@pytest.mark.parametrize(
    ("status", "says", "words"),
    [
        (1, "", "said nothing"),
        (1, "ValueError: invalid literal for int()", "an untyped error: ValueError"),
        (1, "decentral.errors.StateError: no", "an untyped error"),
        (1, "peer: something went wrong", "named no peer or phase"),
        (-11, "", "died of SIGSEGV"),
        (0, "", "said nothing"),
    ],
)
def test_i5_an_end_that_nobody_explains(tmp_path: Path, status: int, says: str, words: str) -> None:
    run = PaperRun(4)
    run.rounds(3)
    ended(run, "d", status, says)
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I5"}
    assert said(report).startswith("I5: d ")
    assert words in said(report)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (1, "peer: the disk refused (phase: append to events.jsonl)"),
        (1, "peer: this identity runs elsewhere (phase: link, peer: peer:abcd)"),
    ],
)
def test_i5_a_typed_end(tmp_path: Path, status: int, says: str) -> None:
    run = PaperRun(4)
    run.rounds(3)
    ended(run, "d", status, says)
    report = verdict(run, tmp_path)
    assert report.held, said(report)
    assert report.checked["unexpected_exits"] == 1


def test_i5_an_end_after_done(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(3)
    run.tell("d", "done", reason="the run reached its end", round=7, tokens=1, state_hash="")
    ended(run, "d", 0, "")
    assert verdict(run, tmp_path).held


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "", "peer": None, "says": "Somebody has left us."}, "has no kind"),
        ({"kind": "died", "peer": None, "says": ""}, "says nothing"),
        ({"kind": "died", "peer": None, "says": "KeyError: 'x' is not there"}, "untyped"),
        ({"kind": "died", "says": "Somebody has left us."}, "neither peer nor phase"),
        ({"kind": "died", "peer": 7, "says": "Somebody has left us."}, "a peer that is none"),
    ],
)
def test_i5_a_fault_event_that_helps_nobody(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    run = PaperRun(3)
    run.rounds(3)
    run.tell("b", "fault", **fields)
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I5"}
    assert "a fault event of b" in said(report)
    assert words in said(report)


def test_i5_a_traceback_of_a_process_that_lives_on(tmp_path: Path) -> None:
    run = PaperRun(3)
    run.rounds(3)
    run.write(tmp_path)
    text = "warming up\nTraceback (most recent call last):\n  File x\nKeyError: 'x'\n"
    (tmp_path / "peers" / "b" / "stderr.log").write_text(text)
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"I5"}
    assert "b printed, in line 2 of its stderr: Traceback" in said(report)


# ---------------------------------------------------------------------- logs


def test_a_line_that_sigkill_cut_off_is_normal(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(3)
    run.kill("d")
    run.rounds(2)
    killed = len(run.peers["d"].events)
    run.restart("d")
    run.rounds(2)
    run.end()
    path = run.write(tmp_path) / "peers" / "d" / "events.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    half = json.dumps({"event": "round", "t": 1.0, "lineage": "L1"})[:-9]
    path.write_text("".join(whole[:killed]) + half + "".join(whole[killed:]) + half)
    report = audit(tmp_path)
    assert report.held, said(report)


def test_a_broken_line_in_the_middle_of_a_life_is_not(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(3)
    run.end()
    path = run.write(tmp_path) / "peers" / "d" / "events.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:6]) + '{"event": "ro\n' + "".join(whole[6:]))
    report = audit(tmp_path)
    assert set(report.counts) == {"log"}
    assert "line 7 of d's log is broken" in said(report)


def test_a_log_without_a_beginning(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(3)
    del run.peers["d"].events[0]
    report = verdict(run, tmp_path)
    assert report.counts["log"] == 1
    assert "d's log does not begin with a start line" in said(report)


def test_a_malformed_event_is_a_finding_and_not_a_crash(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(3)
    del run.event("d", "commit", round=6)["theta"]
    report = verdict(run, tmp_path)
    assert set(report.counts) == {"log"}
    assert "a 'commit' line of d is malformed: KeyError('theta')" in said(report)


def broken_run() -> PaperRun:
    run = PaperRun(4)
    run.rounds(5)
    run.event("c", "commit", round=7)["theta"][0] += 0.5
    run.kill("d")
    run.rounds(2)
    run.lapse(14)
    run.restart("d")
    run.rounds(3)
    run.end()
    return run


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_reading_along_finds_the_same(tmp_path_factory, shares, chance) -> None:  # type: ignore[no-untyped-def]
    """Whatever part of each file is there when it looks, in whichever order they grow."""
    whole, part = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("part")
    expected = audit(broken_run().write(whole))
    files = sorted(path for path in whole.rglob("*.jsonl"))
    auditor, found = Auditor(part), []
    began, until = 1000.0, broken_run().now
    for share in sorted(shares):
        now = began + share * (until - began)
        for path in files:
            here = part / path.relative_to(whole)
            here.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            least = sum(len(line) for line in told_by(path, now))
            size = max(least, int(chance.uniform(0, 1) * len(data)))
            if not here.exists() or here.stat().st_size < size:
                here.write_bytes(data[:size])
        found += auditor.poll(now)
    for path in files:
        (part / path.relative_to(whole)).write_bytes(path.read_bytes())
    report = auditor.finish()
    assert [str(one) for one in report.violations] == [str(one) for one in expected.violations]
    assert found == report.violations[: len(found)]
    assert report.checked == expected.checked


def told_by(path: Path, now: float) -> list[bytes]:
    """The lines of a file that a process has written by then."""
    told, base = [], 0.0
    for line in path.read_bytes().splitlines(keepends=True):
        record = json.loads(line)
        base = record.get("monotonic_s", base)
        if record.get("at", base + record.get("t", 0.0)) > now:
            break
        told.append(line)
    return told


def test_polling_tells_each_violation_once_and_soon(tmp_path: Path) -> None:
    run = PaperRun(4)
    run.rounds(5)
    auditor = Auditor(run.write(tmp_path))
    assert auditor.poll(run.now + 2) == []
    run.event("c", "commit", round=run.states[-1].round)["theta"][0] += 0.5
    run.rounds(1)
    edited = run.event("b", "commit", round=run.states[-1].round)
    edited["theta"][0] += 0.5
    run.write(tmp_path)
    new = auditor.poll(run.now + 2)
    assert [one.peer for one in new] == ["b"]
    assert auditor.poll(run.now + 4) == []
    stuck = auditor.poll(run.now + 20)
    assert [one.invariant for one in stuck] == ["I3"]
    assert auditor.poll(run.now + 40) == []


# ---------------------------------------------------------------------- the report


KEYS = {"verdict", "seed", "faults", "rounds", "violations", "longest_commit_gap_s", "goodput",
        "recovery_s", "leaks"}  # fmt: skip


def test_the_report_on_disk(tmp_path: Path) -> None:
    run = broken_run()
    run.fault("stop", ["a"], note="</script><b>")
    report = audit(run.write(tmp_path))
    report.write(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told.keys() >= KEYS
    assert told["verdict"] == "broken"
    assert (told["seed"], told["faults"], told["rounds"]) == (1, 2, 14)
    assert told["recovery_s"].keys() >= {"p50", "p99", "max"}
    assert {one["invariant"] for one in told["violations"]} == {"I1", "I3"}
    assert all(0 <= one["at"] <= told["seconds"] for one in told["violations"])

    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert text.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', text)
    assert data is not None
    drawn = json.loads(data.group(1))
    assert list(drawn["lanes"]) == ["a", "b", "c", "d"]
    assert [state for _, state in drawn["lanes"]["d"]] == [
        "starting", "up", "down", "starting", "up", "left", "down",
    ]  # fmt: skip
    assert sum(last - first + 1 for *_, first, last, _, _ in drawn["rounds"]) == report.rounds
    assert [one[2] for one in drawn["faults"]] == ["kill", "stop"]


def test_many_rounds_fit_into_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decentral.churn.audit.records.MOST_ROUNDS", 50)
    run = PaperRun(2)
    run.rounds(170)
    report = verdict(run, tmp_path)
    assert report.held, said(report)
    drawn = report.records.rounds
    assert len(drawn) <= 50
    assert sum(last - first + 1 for *_, first, last, _, _ in drawn) == report.rounds


# ---------------------------------------------------------------------- ranges

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda one: (one[0], one[0] + one[1])),
    max_size=20,
)


def ids(ranges: list[tuple[int, int]]) -> set[int]:
    return {n for a, b in ranges for n in range(a, b)}


@given(RANGES)
def test_a_range_set_is_a_set(ranges: list[tuple[int, int]]) -> None:
    found, model = RangeSet(), set[int]()
    for start, stop in ranges:
        fresh = set(range(start, stop))
        assert found.add(start, stop) == (not fresh & model)
        model |= fresh
        kept = list(zip(found.starts, found.stops, strict=True))
        assert ids(kept) == model
        assert all(b < c for (_, b), (c, _) in pairwise(kept))
        assert ids(found.holes()) == set(range(max(model))) - model


@given(RANGES, RANGES)
def test_what_is_common_and_what_is_left(
    ours: list[tuple[int, int]], theirs: list[tuple[int, int]]
) -> None:
    assert ids(without(ours, theirs)) == ids(ours) - ids(theirs)
    assert ids(common(ours, theirs)) == ids(ours) & ids(theirs)


def test_lines_are_written_whole(tmp_path: Path) -> None:
    lines(tmp_path / "x" / "a.jsonl", [{"a": 1}])
    assert (tmp_path / "x" / "a.jsonl").read_text() == '{"a": 1}\n'


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([]) == {"p50": None, "p99": None, "max": None, "count": 0}
    assert percentiles([2.0, 1.0]) == {"p50": 1.0, "p99": 2.0, "max": 2.0, "count": 2}
    hundred = [float(n) for n in range(1, 201)]
    assert percentiles(hundred) == {"p50": 100.0, "p99": 198.0, "max": 200.0, "count": 200}
