"""What `decentral plan` computes, against sums done by hand; and how it reads what people write."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from decentral import quantities
from decentral.cli import main
from decentral.cli.plan import network_of, show
from decentral.collectives.network import Network
from decentral.errors import ConfigError
from decentral.planning import (
    COMFORTABLE,
    EXACT_FIRST,
    LADDER,
    OVERLAP_STEPS,
    STRATEGIES,
    Plan,
    exchange,
    memory,
    plan,
)

MB_S = 1e6
FIRST_CHUNK = 0.05
"""What the cost model adds to these exchanges for filling the pipeline."""


def links(members: int, mb_s: float, rtt_s: float = 0.0) -> Network:
    return Network.uniform(members, mb_s * MB_S, rtt_s)


def of(plans, strategy: str, codec: str) -> Plan:
    (found,) = (one for one in plans if (one.strategy, one.codec) == (strategy, codec))
    return found


# ---- sums by hand


def test_two_peers_exchange_what_they_hold_once_each_way():
    """Half of it to its owner, and half back: 12.5 M values of 4 bytes at 10 MB/s."""
    one = exchange(links(2, 10), 12_500_000, "fp32")
    assert one.sent_bytes == pytest.approx(50e6, rel=1e-4) == one.received_bytes
    assert one.seconds == pytest.approx(5.0, rel=FIRST_CHUNK)


def test_eight_peers_send_fourteen_eighths():
    one = exchange(links(8, 12.5), 8 * 256 * 1000, "fp32")
    assert one.sent_bytes == 2 * 7 * 256 * 1000 * 4
    assert one.seconds == pytest.approx(one.sent_bytes / 12.5e6, rel=FIRST_CHUNK)


def test_a_codec_shortens_the_exchange_by_its_bits():
    fp32, bf16, int8 = (exchange(links(2, 10), 10_240_000, c) for c in ("fp32", "bf16", "int8"))
    assert bf16.sent_bytes * 2 == fp32.sent_bytes
    assert int8.sent_bytes == pytest.approx(fp32.sent_bytes * 8.125 / 32, rel=1e-6)
    assert fp32.seconds > bf16.seconds > int8.seconds


def test_survivors_go_to_everybody():
    """4096 values → 116 bytes, to each of three others."""
    one = exchange(links(4, 1), 4096 * 256, "topk")
    assert one.schedule == "all-gather"
    assert one.sent_bytes == one.received_bytes == 3 * 116 * 256
    assert one.seconds == pytest.approx(3 * 116 * 256 / MB_S, rel=0.01)


def test_memory_is_the_sum_of_the_buffers():
    assert memory(1000, "DiLoCo").total == 4000 * (1 + 1 + 1 + 1 + 2 + 2)
    streaming = memory(1000, "StreamingDiLoCo", 4)
    assert (streaming.theta, streaming.momentum) == (4000, 4000)
    assert (streaming.delta, streaming.next_state, streaming.snapshots) == (4000, 2000, 12000)
    assert streaming.total == 7 * 4000 + 4 * 1000
    assert memory(1000, "SparseLoCo").error_feedback == 4000
    assert memory(1000, "AsyncDiLoCo").snapshots == 20000


def test_h_is_the_smallest_that_waits_little_enough():
    """A tenth of the time: nine times the exchange of 5 s, in steps of half a second: 90 steps."""
    advice = plan(12_500_000, links(2, 10), 0.5)
    diloco = of(advice.plans, "DiLoCo", "fp32")
    assert diloco.sync_every == 100 and diloco.hidden == 0
    assert diloco.round_s == pytest.approx(55, rel=0.01)
    assert diloco.blocked == pytest.approx(1 / 11, rel=0.01)
    assert diloco.sent_bytes_day == pytest.approx(50e6 * 86400 / 55, rel=0.01)
    assert advice.recommended is diloco
    patient = plan(12_500_000, links(2, 10), 0.5, overhead=0.5)
    assert of(patient.plans, "DiLoCo", "fp32").sync_every == 20


def test_fragments_are_the_fewest_that_hide():
    """5 s of exchange behind windows of 4 × 0.5 s: three fragments, and nothing is waited for from
    H = 10 on, of which five seconds of training hide it, but for the first chunks."""
    streaming = of(plan(12_500_000, links(2, 10), 0.5).plans, "StreamingDiLoCo", "fp32")
    assert streaming.fragments == 3 and streaming.sync_every == 10
    assert streaming.exchange_s == pytest.approx(5, rel=FIRST_CHUNK)
    assert streaming.blocked < FIRST_CHUNK and streaming.hidden > 1 - FIRST_CHUNK


def test_async_hides_an_exchange_behind_the_next_round():
    one = of(plan(12_500_000, links(2, 10), 0.5).plans, "AsyncDiLoCo", "fp32")
    assert one.sync_every == 10 and one.blocked < FIRST_CHUNK and one.fragments == 1


def test_a_peer_alone_exchanges_nothing():
    advice = plan(1000, links(1, 1), 0.1)
    assert advice.recommended.strategy == "DiLoCo" and advice.recommended.codec == "fp32"
    assert advice.recommended.sync_every == LADDER[0]
    assert advice.recommended.blocked == advice.recommended.sent_bytes_day == 0


# ---- the rule


def test_the_first_that_fits_is_recommended():
    """100 Mbit/s and 124 M: plain DiLoCo needs four bits, and so does every slower choice of H."""
    advice = plan(124_000_000, links(8, 12.5, 0.02), 0.25)
    assert (advice.recommended.strategy, advice.recommended.codec) == ("DiLoCo", "int4")
    before = advice.plans[: advice.plans.index(advice.recommended)]
    assert [one.codec for one in before] == ["fp32", "fp16", "bf16", "int8"]
    assert not any(one.fits for one in before)
    assert list(dict.fromkeys(one.strategy for one in advice.plans)) == list(STRATEGIES)


def test_slow_links_want_pieces_then_survivors_then_anything():
    def take(mb_s: float) -> str:
        return plan(124_000_000, links(8, mb_s, 0.02), 0.25).recommended.strategy

    seen = [take(100 / 2**k) for k in range(14)]
    order = ["DiLoCo", "StreamingDiLoCo", "SparseLoCo"]
    assert [one for one in dict.fromkeys(seen) if one in order] == order
    last = plan(124_000_000, links(8, 0.001), 0.25)
    assert not last.recommended.fits
    assert last.recommended.blocked == min(one.blocked for one in last.plans)


def test_little_memory_wants_more_fragments():
    free = of(plan(10**8, links(4, 100), 0.5).plans, "StreamingDiLoCo", "bf16")
    budget = 3.03 * 10**9
    assert free.fragments == 2 and free.memory.total > budget
    tight = plan(10**8, links(4, 100), 0.5, memory_bytes=budget)
    assert tight.recommended.strategy == "StreamingDiLoCo"
    assert tight.recommended.fragments == 7  # 2800 MB + 1600 MB / 7
    assert tight.recommended.memory.total <= budget
    assert not of(tight.plans, "DiLoCo", "fp32").fits
    with pytest.raises(ConfigError, match=r"no plan does with 1,000 bytes .* needs 2,8\d\d,"):
        plan(10**8, links(4, 100), 0.5, memory_bytes=1000)


@settings(max_examples=25, deadline=None)
@given(
    params=st.integers(10**5, 10**9),
    members=st.integers(2, 20),
    mb_s=st.floats(0.5, 1000),
    step_s=st.floats(0.01, 5),
)
def test_slower_links_never_want_a_smaller_h(params, members, mb_s, step_s):
    fast = plan(params, links(members, mb_s), step_s).plans
    slow = plan(params, links(members, mb_s / 2), step_s).plans
    for a, b in zip(fast, slow, strict=True):
        assert (a.strategy, a.codec) == (b.strategy, b.codec)
        assert a.sync_every <= b.sync_every and a.exchange_s < b.exchange_s
        for one in (a, b):
            assert 0 <= one.blocked < 1 and 0 <= one.hidden <= 1
            assert one.blocked + one.hidden <= 1 + 1e-9
            assert not one.fits or one.sync_every <= COMFORTABLE
            assert one.fragments == 1 or one.strategy == "StreamingDiLoCo"


def test_an_unlike_member_counts():
    slow = network_of(["100mbit,20ms", "100mbit,20ms", "10mbit,20ms"], None)
    fast = network_of(["100mbit,20ms"], 3)
    assert exchange(slow, 10**7, "fp32").seconds > 2 * exchange(fast, 10**7, "fp32").seconds


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"params": 0}, "1 parameter or more"),
        ({"step_s": 0.0}, "more than 0 s"),
        ({"step_s": float("nan")}, "more than 0 s"),
        ({"overhead": 1.0}, "fraction"),
        ({"codec": "sign"}, "no strategy sends sign"),
        ({"codec": "mp3"}, "there is no codec 'mp3'"),
    ],
)
def test_what_cannot_be_planned(words, says):
    given = {"params": 1000, "network": links(2, 1), "step_s": 0.1, **words}
    with pytest.raises(ConfigError, match=says):
        plan(given.pop("params"), given.pop("network"), given.pop("step_s"), **given)


# ---- what people write


def test_quantities():
    assert [quantities.count(text) for text in ("7", "124M", "1.3B", "8k")] == [
        7, 124_000_000, 1_300_000_000, 8000,
    ]  # fmt: skip
    assert quantities.bytes_s("100mbit") == 12.5e6 == quantities.bytes_s("0.1Gbit")
    assert quantities.seconds("20ms") == pytest.approx(0.02)
    assert quantities.size_bytes("8GiB") == 8 * 2**30 and quantities.size_bytes("1.5kB") == 1500


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (quantities.count, ""),
        (quantities.count, "-1M"),
        (quantities.count, "1e6"),
        (quantities.count, "124 M"),
        (quantities.count, "0"),
        (quantities.count, "12X"),
        (quantities.bytes_s, "100mb"),
        (quantities.bytes_s, "100MB/s"),
        (quantities.bytes_s, "100"),
        (quantities.bytes_s, "0mbit"),
        (quantities.bytes_s, "nanmbit"),
        (quantities.seconds, "20"),
        (quantities.seconds, "20m"),
        (quantities.size_bytes, "8"),
        (quantities.size_bytes, "8Gi"),
        (quantities.size_bytes, "٣GiB"),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(read, text):
    with pytest.raises(ConfigError, match="write ") as refused:
        read(text)
    assert repr(text) in str(refused.value)


def test_links_make_a_network():
    network = network_of(["100mbit,20ms"], 4)
    assert network.members == 4 and network.up_bytes_s == network.down_bytes_s == (12.5e6,) * 4
    assert network.rtt[0, 1] == np.float32(0.02) and network.rtt[2, 2] == 0
    network = network_of(["100mbit/20mbit,10ms", "1gbit,40ms"], None)
    assert network.down_bytes_s == (12.5e6, 125e6) and network.up_bytes_s == (2.5e6, 125e6)
    assert network.rtt[0, 1] == np.float32(0.025)
    assert network_of(["1mbit,1ms"], None).members == 8


@pytest.mark.parametrize(
    ("texts", "peers", "says"),
    [
        (["100mbit"], 2, "is not a link"),
        (["100mbit,20"], 2, "not a time"),
        (["100mbit/,20ms"], 2, "not a rate"),
        (["1mbit,1ms", "1mbit,1ms"], 3, "2 links for 3 peers"),
        (["1mbit,1ms"], 0, "1 peer or more"),
        (["1mbit,1ms"], -1, "1 peer or more"),
    ],
)
def test_links_that_make_none(texts, peers, says):
    with pytest.raises(ConfigError, match=says):
        network_of(texts, peers)


# ---- the command


COMMAND = ["plan", "--params", "124M", "--links", "100mbit,20ms"]


def test_json_is_one_object(capsys):
    assert main([*COMMAND, "--peers", "4", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert set(report) == {"params", "peers", "step_s", "recommended", "plans"}
    assert (report["params"], report["peers"], report["step_s"]) == (124_000_000, 4, 0.25)
    assert report["recommended"] in report["plans"]
    assert len(report["plans"]) == 3 * len(EXACT_FIRST) + 1
    assert set(report["plans"][0]) == {
        "strategy", "codec", "sync_every", "fragments", "schedule", "exchange_s", "round_s",
        "blocked", "hidden", "sent_bytes_round", "received_bytes_round", "sent_bytes_day",
        "received_bytes_day", "memory", "fits",
    }  # fmt: skip
    assert set(report["plans"][0]["memory"]) == {
        "theta", "momentum", "delta", "mean", "next_state", "snapshots", "error_feedback",
        "pinned", "total",
    }  # fmt: skip


def test_the_table_recommends_what_can_be_pasted(capsys):
    assert main([*COMMAND, "--codec", "int8"]) == 0
    out = capsys.readouterr().out
    recommended = plan(124_000_000, links(8, 12.5, 0.02), 0.25, codec="int8").recommended
    assert recommended.strategy == "StreamingDiLoCo" and recommended.sync_every == 100
    pieces = recommended.fragments
    assert f'StreamingDiLoCo(sync_every=100, codec="int8", fragments={pieces})' in out
    assert all(name in out for name in ("DiLoCo", "AsyncDiLoCo", "waits", "hidden", "theta"))
    assert "SparseLoCo" not in out and OVERLAP_STEPS * 0.25 * pieces >= recommended.exchange_s


def test_a_narrow_terminal_is_spared_some_columns():
    advice = plan(124_000_000, links(8, 12.5, 0.02), 0.25)
    for width, wide in ((100, False), (140, True)):
        out = io.StringIO()
        show(advice, "a model", Console(file=out, width=width))
        assert ("sent/round" in out.getvalue()) == wide and "…" not in out.getvalue()


def test_bad_input_is_one_sentence(capsys):
    for more in (["--params", "many"], ["--memory", "8"], ["--overhead", "0"], ["--codec", "x"]):
        assert main([*COMMAND, *more]) == 1
        err = capsys.readouterr().err
        assert err.startswith("decentral plan: ") and err.count("\n") == 1
