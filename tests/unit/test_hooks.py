"""Loops that keep their own optimizer.step(): the same bits as with run.step."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from fake_mesh import Cluster
from tiny_run import Numbers, loss_of, weights

import decentral
from decentral.errors import ConfigError
from decentral.hooks import hooked
from decentral.options import RunOptions
from decentral.run import Run
from decentral.schedule import cosine
from decentral.strategies import DiLoCo


def make_run(
    cluster: Cluster, index: int = 0, *, split: bool = False, fused: bool = False, **options
) -> Run:
    """`split`: weight and bias have an optimizer each."""
    torch.manual_seed(index)
    model = torch.nn.Linear(1, 1)
    groups = [[p] for p in model.parameters()] if split else [list(model.parameters())]
    return Run(
        cluster.meshes[index],
        model,
        [torch.optim.AdamW(group, lr=0.05, fused=fused) for group in groups],
        DiLoCo(sync_every=3, outer_momentum=0.6),
        RunOptions(**{"rounds": 4, **options}),
        founder=index == 0,
        make_group=cluster.make_group,
    )


def with_step(run: Run) -> None:
    with run:
        for batch in run.data(Numbers(), 2):
            loss = loss_of(run.model, batch)
            loss.backward()
            run.step(loss)


def with_hooks(run: Run, **words) -> None:
    optimizers = run._inner.optimizers
    with hooked(run, **words):
        for batch in run.data(Numbers(), 2):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(run.model, batch).backward()
            for optimizer in optimizers:
                optimizer.step()


def all_at_once(cluster: Cluster, train, **options) -> list[Run]:
    runs = [make_run(cluster, i, **options) for i in range(len(cluster.meshes))]
    threads = [threading.Thread(target=train, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a peer waits for ever"
    return runs


@pytest.mark.parametrize("peers", [1, 3])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("schedule", [None, cosine(warmup=0.2)])
def test_the_same_bits_as_with_run_step(peers, split, schedule):
    options = {"split": split, "schedule": schedule}
    one, other = Cluster(peers), Cluster(peers)
    expected = all_at_once(one, with_step, **options)
    runs = all_at_once(other, with_hooks, **options)
    assert {run.round for run in runs} == {4}
    assert {run.tokens for run in runs} == {4 * 3 * 2 * peers}
    assert {run.state_hash for run in runs} == {expected[0].state_hash}
    assert [weights(run).tobytes() for run in runs] == [weights(run).tobytes() for run in expected]
    assert one.samples_per_peer() == other.samples_per_peer()
    assert [mesh.steps for mesh in other.meshes] == [12] * peers


def test_the_loss_is_reported_where_it_is_told():
    reported = []
    for words in ({}, {"loss": lambda: torch.tensor(2.5, requires_grad=True)}):
        cluster = Cluster(1)
        with_hooks(make_run(cluster), **words)
        reported.append([event["loss"] for event in cluster.meshes[0].rounds()])
    assert reported == [[None] * 4, [2.5] * 4]


@pytest.mark.parametrize("tokens", [7, lambda: 7])
def test_tokens_are_given_or_asked_for(tokens):
    run = make_run(Cluster(1))
    with_hooks(run, tokens=tokens)
    assert run.tokens == 4 * 3 * 7


def test_a_torch_scheduler_keeps_the_rates_of_a_run_without_a_schedule():
    cluster = Cluster(1)
    run = make_run(cluster)
    (optimizer,) = run._inner.optimizers
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rates = []
    with hooked(run):
        for batch in run.data(Numbers(), 2):
            optimizer.zero_grad()
            loss_of(run.model, batch).backward()
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05 * 0.5 ** (k + 1) for k in range(12)])


def test_accumulation_is_the_loops_and_counts_all_samples():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=1)
    (optimizer,) = run._inner.optimizers
    with hooked(run):
        for number, batch in enumerate(run.data(Numbers(), 1)):
            loss_of(run.model, batch).backward()
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert (run.tokens, cluster.meshes[0].steps) == (3, 1)


def test_of_two_optimizers_the_last_one_to_step_counts_in_any_order():
    cluster = Cluster(1)
    run = make_run(cluster, split=True, rounds=1)
    first, second = run._inner.optimizers
    seen = []
    with hooked(run):
        for batch in run.data(Numbers(), 2):
            loss_of(run.model, batch).backward()
            for optimizer in (second, second, first):
                optimizer.step()
                seen.append(cluster.meshes[0].steps)
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_a_step_that_a_scaler_has_a_fused_optimizer_leave_out_counts_no_tokens():
    run = make_run(Cluster(1), rounds=1, fused=True)
    (optimizer,) = run._inner.optimizers
    scaler = torch.amp.GradScaler("cpu")
    with hooked(run):
        for number, batch in enumerate(run.data(Numbers(), 2)):
            before = weights(run)
            loss = loss_of(run.model, batch) * (float("inf") if number == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert (weights(run) == before).all() == (number == 1)
    assert run.tokens == 2 * 2


def test_without_run_data_the_run_begins_before_the_first_step():
    counts = []
    for loop in ("step", "hooks"):
        cluster = Cluster(1)
        run = make_run(cluster, rounds=2)
        (optimizer,) = run._inner.optimizers
        x = torch.ones(1, 1)
        steps = 0
        with run if loop == "step" else hooked(run, tokens=10):
            while run.finished is None:
                optimizer.zero_grad()
                loss = run.model(x).square().mean()
                loss.backward()
                if loop == "step":
                    run.step(loss, tokens=10)
                else:
                    optimizer.step()
                steps += 1
            after = weights(run)
            run.model(x).sum().backward()
            if loop == "hooks":
                optimizer.step()
            assert (weights(run) == after).all(), "after the end nothing changes"
        counts.append((steps, run.tokens, run.state_hash))
    assert counts[0] == counts[1] and counts[0][:2] == (7, 60)


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"clip_norm": 1.0}, {"scaler": torch.amp.GradScaler("cpu")}]
)
def test_options_of_run_step_are_refused(options):
    cluster = Cluster(1)
    run = make_run(cluster, **options)
    with pytest.raises(ConfigError, match=next(iter(options))) as refused:
        hooked(run)
    assert refused.value.phase == "hooks"
    assert cluster.meshes[0].closed, "nobody else can close it"


def test_run_step_is_refused_while_hooks_count():
    run = make_run(Cluster(1))
    with pytest.raises(ConfigError, match=r"leave run\.step out"), hooked(run):
        for batch in run.data(Numbers(), 2):
            loss = loss_of(run.model, batch)
            loss.backward()
            run.step(loss)


def test_hooks_go_on_once_and_only_over_torch_optimizers():
    run = make_run(Cluster(1))
    again = hooked(run)
    with hooked(run):
        with pytest.raises(ConfigError, match="on already"):
            again.__enter__()
        with pytest.raises(ConfigError, match="on yet"):
            hooked(run)


def test_an_exception_takes_the_hooks_off_leaves_the_run_and_goes_on():
    cluster = Cluster(1)
    run = make_run(cluster, split=True)
    first, second = run._inner.optimizers
    inner = run._inner
    with pytest.raises(ZeroDivisionError), hooked(run) as the_run:
        assert the_run is run
        for batch in run.data(Numbers(), 2):
            loss_of(run.model, batch).backward()
            first.step()
            raise ZeroDivisionError
    mesh = cluster.meshes[0]
    assert mesh.left == "ZeroDivisionError" and mesh.closed and run._inner is inner
    assert mesh.steps == 0
    before = weights(run)
    run.model(torch.ones(1, 1)).sum().backward()
    first.step()
    second.step()
    assert mesh.steps == 0 and (weights(run) != before).any(), "a plain optimizer again"
    assert not first._optimizer_step_pre_hooks and not second._optimizer_step_post_hooks


def test_work_that_is_not_finite_is_refused_and_training_goes_on():
    cluster = Cluster(1)
    run = make_run(cluster, rounds=3)
    (optimizer,) = run._inner.optimizers
    with hooked(run):
        for batch in run.data(Numbers(), 2):
            optimizer.zero_grad()
            loss = loss_of(run.model, batch)
            (loss * float("nan") if cluster.meshes[0].steps == 4 else loss).backward()
            optimizer.step()
    faults = [event for event in cluster.meshes[0].events if event["event"] == "fault"]
    assert len(faults) == 1 and "not finite" in faults[0]["says"]
    assert run.round == 3 and np.isfinite(weights(run)).all()


def test_it_is_public():
    assert decentral.hooked is hooked
