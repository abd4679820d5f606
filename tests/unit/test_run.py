"""The run API and the life of an outer round, with one peer and with several, without a network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_mesh import Cluster
from safetensors.torch import load_file
from tiny_run import Numbers, loss_of, make_run, train, train_all, weights

from decentral.errors import ConfigError, ContributionError
from decentral.options import RunOptions
from decentral.peer.protocol import (
    StartReduce,
)
from decentral.run import Run
from decentral.schedule import cosine
from decentral.strategies import DiLoCo
from decentral.types import Range

# ---------------------------------------------------------------------------- one peer


def test_one_peer_trains_to_the_end_of_the_run():
    cluster = Cluster(1)
    with make_run(cluster) as run:
        train(run)
        assert (run.round, run.tokens) == (4, 4 * 3 * 2)
        assert run.finished == "the run reached its end at round 4"
        assert run.members == ("peer:a",)
    mesh = cluster.meshes[0]
    assert mesh.lease_samples == 3 * 2 and mesh.steps == 12
    assert mesh.left == run.finished and mesh.closed
    assert [state.round for state in mesh.held] == [1, 2, 3, 4]


def test_round_events_have_the_documented_fields():
    cluster = Cluster(1)
    train(make_run(cluster))
    mesh = cluster.meshes[0]
    events = mesh.rounds()
    assert [event["round"] for event in events] == [1, 2, 3, 4]
    assert list(events[0]) == [
        "event", "lineage", "epoch", "round", "durable_round", "participants", "state_hash",
        "loss", "tokens", "bytes_sent", "bytes_received", "seconds",
    ]  # fmt: skip
    assert events[-1]["loss"] < events[0]["loss"]
    assert events[-1]["state_hash"] == mesh.held[-1].root.hex()
    assert [e["event"] for e in mesh.events].count("done") == 1
    assert mesh.events[-1]["event"] == "done" and mesh.events[-1]["round"] == 4
    assert mesh.shown == {"strategy": "diloco", "loss": events[-1]["loss"], "tokens": 24}


def test_with_sgd_alone_and_no_momentum_it_is_plain_training():
    """η = 1, μ = 0, one peer: outer rounds change nothing."""
    cluster = Cluster(1)
    run = make_run(cluster)
    seen = []
    twin = torch.nn.Linear(1, 1)
    twin.load_state_dict(run.model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in run.data(Numbers(), 2):
        loss = loss_of(run.model, batch)
        loss.backward()
        run.step(loss)
        optimizer.zero_grad()
        loss_of(twin, batch).backward()
        optimizer.step()
        seen.append(batch)
    assert len(seen) == 12
    for a, b in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_are_the_committed_ones_after_the_last_round():
    cluster = Cluster(1)
    run = make_run(cluster)
    train(run)
    committed = cluster.meshes[0].held[-1].tensors["param/weight"]
    assert committed.tobytes() == run.model.weight.detach().numpy().tobytes()


def test_accumulation_averages_and_counts_whole_steps():
    cluster = Cluster(1)
    run = make_run(cluster, accumulate=2, rounds=1)
    before = None
    losses = []
    for batch in run.data(Numbers(), 2):
        if before is None:
            before = run.model.weight.item(), run.model.bias.item()
        losses.append(batch)
        loss = loss_of(run.model, batch)
        loss.backward()
        run.step(loss)
        if len(losses) == 1:
            assert (run.model.weight.item(), run.model.bias.item()) == before
        if len(losses) == 2:
            twin = torch.nn.Linear(1, 1)
            twin.weight.data.fill_(before[0])
            twin.bias.data.fill_(before[1])
            both = [torch.cat(parts) for parts in zip(*losses, strict=True)]
            loss_of(twin, both).backward()
            assert run.model.weight.item() == pytest.approx(
                before[0] - 0.1 * twin.weight.grad.item(), abs=1e-6
            )
    assert cluster.meshes[0].lease_samples == 3 * 2 * 2
    assert cluster.meshes[0].steps == 3 and run.tokens == 12


def test_the_schedule_runs_on_the_runs_clock():
    cluster = Cluster(1)
    run = make_run(cluster, schedule=cosine(), rounds=2)
    rates = []
    train(run, on_step=lambda run: rates.append(run._inner._groups[0]["lr"]))
    expected = [0.1 * 0.5 * (1 + np.cos(np.pi * k / 6)) for k in range(6)]
    assert rates == pytest.approx(expected)


def test_a_target_in_tokens_ends_the_run():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=None, target_tokens=13)
    train(run)
    assert (run.round, run.tokens) == (3, 18)


def test_clipping_bounds_the_step():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=1, sync_every=1, clip_norm=1e-3)
    before = weights(run)
    train(run)
    assert np.linalg.norm(weights(run) - before) <= 0.1 * 1e-3 * 1.001


class Scaler:
    """A GradScaler that leaves out the first step."""

    def __init__(self) -> None:
        self.scale, self.calls = 4.0, 0

    def get_scale(self) -> float:
        return self.scale

    def unscale_(self, optimizer) -> None: ...

    def step(self, optimizer) -> None:
        if self.calls:
            optimizer.step()

    def update(self) -> None:
        if not self.calls:
            self.scale /= 2
        self.calls += 1


def test_a_step_that_the_scaler_skipped_counts_no_tokens():
    cluster = Cluster(1)
    run = make_run(cluster, scaler=Scaler(), rounds=1)
    train(run)
    assert run.tokens == 2 * 2
    assert cluster.committed[0].contributions[0].leases == (Range(0, 6),), "its samples are spent"


def test_without_run_data_the_run_begins_at_the_first_step():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=2)
    x = torch.ones(1, 1)
    steps = 0
    while run.finished is None:
        loss = run.model(x).square().mean()
        loss.backward()
        run.step(loss, tokens=10)
        steps += 1
    assert steps == 7, "one before the run began, then two rounds of three"
    assert run.tokens == 60 and cluster.meshes[0].lease_samples == 0
    after = weights(run)
    run.model(x).sum().backward()
    run.step(0.0)
    assert (weights(run) == after).all(), "after the end nothing changes"


def test_outer_shows_the_committed_parameters_and_puts_the_own_ones_back():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=2)
    initial = weights(run)
    checked = []

    def look(run: Run) -> None:
        if run.round == 0:
            own = weights(run)
            assert (own != initial).any()
            with run.outer():
                assert (weights(run) == initial).all()
            assert (weights(run) == own).all()
            checked.append(run.round)

    train(run, on_step=look)
    assert len(checked) == 2


def test_callbacks_see_committed_parameters_and_add_to_the_event():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=2)
    seen = []

    def evaluate(run: Run):
        held = cluster.meshes[0].held[-1].tensors["param/weight"]
        seen.append(held.tobytes() == run.model.weight.detach().numpy().tobytes())
        return {"val_loss": 1.5}

    run.each_round(evaluate)
    train(run)
    assert seen == [True, True]
    assert [event["val_loss"] for event in cluster.meshes[0].rounds()] == [1.5, 1.5]
    assert cluster.meshes[0].events[-1]["val_loss"] == 1.5
    assert cluster.meshes[0].phases == ["eval", None, "eval", None]


def test_save_exports_what_was_committed(tmp_path):
    cluster = Cluster(1)
    run = make_run(cluster)
    train(run)
    path = run.save(tmp_path / "final")
    assert path.name == "final.safetensors" and list(tmp_path.iterdir()) == [path]
    tensors = load_file(path)
    assert tensors.keys() == {"weight", "bias"}
    assert torch.equal(tensors["weight"], run.model.weight)


def test_work_that_is_not_finite_is_refused_and_training_goes_on():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=3)
    poisoned = []
    for batch in run.data(Numbers(), 2):
        loss = loss_of(run.model, batch)
        if cluster.meshes[0].steps == 4 and not poisoned:
            poisoned.append(weights(run))
            loss = loss * float("nan")
        loss.backward()
        run.step(loss)
    faults = [event for event in cluster.meshes[0].events if event["event"] == "fault"]
    assert len(faults) == 1 and "not finite" in faults[0]["says"]
    assert run.round == 3 and np.isfinite(weights(run)).all()
    assert cluster.samples_per_peer()["peer:a"] == [Range(0, 6), Range(6, 12), Range(12, 18)]


def test_work_that_is_never_finite_raises():
    run = make_run(Cluster(1))
    with pytest.raises(ContributionError, match="not finite"):
        for batch in run.data(Numbers(), 2):
            loss = loss_of(run.model, batch) * float("inf")
            loss.backward()
            run.step(loss)


def test_bad_options_are_named():
    for options, says in (
        ({"rounds": 0}, "rounds"),
        ({"target_tokens": 0}, "target_tokens"),
        ({"accumulate": 0}, "accumulate"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ):
        with pytest.raises(ConfigError, match=says):
            RunOptions(**options)
    run = make_run(Cluster(1))
    with pytest.raises(ConfigError, match="batch_size"):
        run.data(Numbers(), 0)


# ---------------------------------------------------------------------------- several peers


def test_peers_end_with_the_same_bits_at_the_same_round():
    cluster = Cluster(3)
    runs = train_all(cluster)
    assert len({run.state_hash for run in runs}) == 1
    assert {run.round for run in runs} == {4} and {run.tokens for run in runs} == {4 * 18}
    assert len({weights(run).tobytes() for run in runs}) == 1


def test_every_sample_counts_once():
    cluster = Cluster(3)
    train_all(cluster)
    counted = [
        i for ranges in cluster.samples_per_peer().values() for r in ranges
        for i in range(r.start, r.stop)
    ]  # fmt: skip
    assert len(counted) == len(set(counted)) == 4 * 3 * 6


def test_a_failed_attempt_is_repeated_with_the_same_contribution():
    cluster = Cluster(2)
    aborted = []

    def call_off(order: StartReduce) -> bool:
        if order.round == 2 and order.attempt == 1:
            cluster.exchange(2, 1, 2).abort("peer:b died")
            aborted.append(order)
        return True

    cluster.before_reduce = call_off
    runs = train_all(cluster)
    assert aborted and cluster.committed[1].attempt > 1
    assert any("peer:b died" in failure[3] for mesh in cluster.meshes for failure in mesh.failures)
    reference = Cluster(2)
    assert train_all(reference)[0].state_hash == runs[0].state_hash


def test_uncounted_work_stays_queued_and_counts_later():
    cluster = Cluster(2, leave_out=frozenset({"peer:b"}))
    runs = train_all(cluster, rounds=3)
    assert [c.peer for c in cluster.committed[0].contributions] == ["peer:a"]
    later = {c.peer: c for c in cluster.committed[1].contributions}
    assert later["peer:b"].leases == (Range(6, 12),), "the lease that round 1 did not count"
    assert len({run.state_hash for run in runs}) == 1
    assert (
        runs[0].tokens
        == runs[1].tokens
        == sum(c.tokens for entry in cluster.committed for c in entry.contributions)
    )


# ---------------------------------------------------------------------------- resume and leave


def test_a_stopped_run_resumes_where_it_was(tmp_path):
    cluster = Cluster(1)
    with make_run(cluster, rounds=2, home=tmp_path) as run:
        train(run)
    assert cluster.meshes[0].checkpoints[-1] == 2
    again = Cluster(1)
    with make_run(again, rounds=2, home=tmp_path) as resumed:
        train(resumed)
        assert resumed.state_hash == run.state_hash
        assert resumed.finished == "the run had already reached its end at round 2"
    assert again.meshes[0].resumed.root.hex() == run.state_hash


def _with_memory(cluster: Cluster, home, **options) -> Run:
    """A run whose every part remembers: AdamW inside, error feedback, outer momentum."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    return Run(
        cluster.meshes[0],
        model,
        torch.optim.AdamW(model.parameters(), lr=0.05),
        DiLoCo(sync_every=3, codec="sign", outer_momentum=0.5),
        RunOptions(rounds=4, home=home, schedule=cosine(warmup=0.1), **options),
        founder=True,
        make_group=cluster.make_group,
    )


@pytest.mark.parametrize("keep_inner", [True, False])
def test_it_goes_on_as_if_it_had_not_stopped(tmp_path, keep_inner: bool):
    """Error feedback and the inner optimizer are kept beside the committed state, once."""
    whole = _with_memory(Cluster(1), tmp_path / "whole")
    train(whole)
    first = _with_memory(Cluster(1), tmp_path / "two", keep_inner=keep_inner)
    for batch in first.data(Numbers(), 2):
        loss = loss_of(first.model, batch)
        loss.backward()
        first.step(loss)
        if first.round == 2:
            break
    first.close()
    cluster = Cluster(1)
    cluster._next_sample = 12  # two rounds of three steps of two samples
    second = _with_memory(cluster, tmp_path / "two", keep_inner=keep_inner)
    train(second)
    assert second.round == whole.round == 4
    assert (second.state_hash == whole.state_hash) == keep_inner
    whole.close()
    second.close()


def test_the_runs_own_target_wins_over_a_later_one(tmp_path):
    cluster = Cluster(1)
    run = make_run(cluster, rounds=3, home=tmp_path)
    for batch in run.data(Numbers(), 2):
        loss_of(run.model, batch).backward()
        run.step(0.0)
        if run.round == 1:
            break
    run.close()
    again = Cluster(1)
    resumed = make_run(again, rounds=5, home=tmp_path)
    train(resumed)
    assert resumed.round == 3
    faults = [event["says"] for event in again.meshes[0].events if event["event"] == "fault"]
    assert faults == ["target_rounds=5 is ignored: the run was founded with 3"]
    resumed.close()


def test_a_damaged_checkpoint_is_reported_and_passed_over(tmp_path):
    with make_run(Cluster(1), rounds=2, home=tmp_path) as run:
        for batch in run.data(Numbers(), 2):
            loss_of(run.model, batch).backward()
            run.step(0.0)
            checkpointer = run._reporters[""]._checkpointer
            if checkpointer is not None:
                checkpointer.flush()
    newest = max((tmp_path / "checkpoints").iterdir())
    os.truncate(newest / "state.safetensors", 900)
    again = Cluster(1)
    with make_run(again, rounds=2, home=tmp_path) as resumed:
        train(resumed)
        assert resumed.round == 2
    mesh = again.meshes[0]
    assert mesh.resumed.round == 1, "round 2 is trained once more"
    assert mesh.events[0]["event"] == "fault" and "round-00000002" in mesh.events[0]["says"]


def test_a_full_disk_does_not_stop_the_training(tmp_path, monkeypatch):
    from decentral import tensor_file

    def full(file, tensors) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "write", full)
    cluster = Cluster(1)
    with make_run(cluster, home=tmp_path) as run:
        train(run)
        assert run.round == 4
    says = {event["says"] for event in cluster.meshes[0].events if event["event"] == "fault"}
    assert all("the disk is full" in sentence for sentence in says) and says


def test_an_exception_leaves_the_run_and_goes_on():
    cluster = Cluster(1)
    with pytest.raises(ZeroDivisionError), make_run(cluster) as run:
        for _ in run.data(Numbers(), 2):
            raise ZeroDivisionError
    assert cluster.meshes[0].left == "ZeroDivisionError" and cluster.meshes[0].closed
    run.close()


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import native_standin
native_standin.install()
from fake_mesh import Cluster
import tiny_run
cluster = Cluster(1)
run = tiny_run.make_run(cluster, rounds=10**9)
leave = cluster.meshes[0].leave
cluster.meshes[0].leave = lambda reason, timeout_s: print("left:", reason, flush=True)
def ready(run):
    if cluster.meshes[0].steps == 2:
        print("training", flush=True)
tiny_run.train(run, on_step=ready)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_a_script_without_a_with_still_leaves(number, code):
    unit = Path(__file__).parent
    script = SCRIPT.format(paths=[str(unit), str(unit.parent / "support")])
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        process.send_signal(number)
        assert process.stdout.read() == "left: its process ends\n"
    assert process.returncode == code
