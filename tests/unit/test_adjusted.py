"""A recipe's task with another strategy or learning rate, as the command line asks for."""

from __future__ import annotations

import argparse

import pytest
import torch

import decentral
from decentral.cli import peer
from decentral.errors import ConfigError
from decentral.recipes import Task
from decentral.recipes.train import adjusted


def task() -> Task:
    model = torch.nn.Linear(2, 1)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.02}]
    return Task(
        model=model,
        optimizer=torch.optim.SGD(groups),
        strategy=decentral.DiLoCo(sync_every=10),
        dataset=range(10),
        batch_size=1,
        loss_fn=lambda model, batch: model(batch).mean(),
        tokens_of=len,
        evaluate=lambda model: 0.0,
        rounds=1,
    )


def test_nothing_changes_unless_it_is_said() -> None:
    one = task()
    same = adjusted(one)
    assert same.strategy == decentral.DiLoCo(sync_every=10)
    assert [group["lr"] for group in same.optimizer.param_groups] == [0.1, 0.02]


def test_strategy_and_learning_rate() -> None:
    other = adjusted(task(), strategy="sparseloco,sync_every=5", lr=0.3)
    assert other.strategy == decentral.SparseLoCo(sync_every=5)
    assert [group["lr"] for group in other.optimizer.param_groups] == pytest.approx([0.3, 0.06])
    with pytest.raises(ConfigError, match="lr is positive"):
        adjusted(task(), lr=0.0)


def test_the_command_line_has_both() -> None:
    parser = argparse.ArgumentParser()
    peer.add_arguments(parser)
    args = parser.parse_args(["--strategy", "diloco,codec=int8", "--lr", "1e-3", "--members", "4"])
    assert (args.strategy, args.lr, args.members) == ("diloco,codec=int8", 1e-3, 4)
