"""Model surgery: everything is in exactly one group, and a message names what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from decentral.dipaco import Grid, split
from decentral.dipaco.flat import FlatModel
from decentral.dipaco.grid import Module
from decentral.errors import ConfigError
from decentral.recipes.gpt_model import GPT, GPTConfig

OUTSIDE = ["wte", "wpe", "norm", "head"]


def gpt(layers: int = 4) -> GPT:
    return GPT(GPTConfig(context=16, width=16, heads=2, layers=layers))


def names(made: object) -> dict[str, list[str]]:
    return {group.name: [slot.name for slot in group.layout.slots] for group in made.groups}  # type: ignore[attr-defined]


def test_numbers_cut_the_one_module_list_evenly() -> None:
    made = split(gpt(), levels=[2, 3], private=OUTSIDE)
    groups = names(made)
    assert {name.split(".")[1] for name in groups["0"]} == {"0", "1"}
    assert {name.split(".")[1] for name in groups["1"]} == {"2", "3"}
    assert groups["private"] == ["wte.weight", "wpe.weight", "norm.weight"]  # the head is tied
    assert made.grid == Grid((2, 3))
    count = sum(parameter.numel() for parameter in gpt().parameters())
    assert made.parameters == count
    inside = sum(p.numel() for p in gpt().blocks.parameters()) // 2
    assert made.all_parameters == 6 * (count - 2 * inside) + 2 * inside + 3 * inside


def test_named_levels_and_what_all_paths_share() -> None:
    made = split(
        gpt(),
        levels=[(2, ["blocks.0", "blocks.3"]), (4, ["blocks.1.up", "blocks.1.down", "blocks.2"])],
        private=["head", "wte"],
        shared=["wpe", "norm", "blocks.1.attention", "blocks.1.norm1", "blocks.1.norm2"],
    )
    assert made.grid.alternatives == (2, 4, 1)
    assert names(made)["private"] == ["wte.weight"]
    assert len(made.grid.through(Module(2, 0))) == 8


@pytest.mark.parametrize(
    ("levels", "private", "says"),
    [
        ([2, 2], ["wte", "wpe", "head"], r"norm.weight belong to no level"),
        ([2, 2], [*OUTSIDE, "blocks.1"], r"blocks.1.* is in two groups: by 'blocks.1' and by"),
        ([2, 2], [*OUTSIDE, "lm_head"], "no trainable tensor or submodule 'lm_head'"),
        ([2, (2, ["blocks.2"])], OUTSIDE, "for every level, or for none"),
        ([(2, "blocks")], OUTSIDE, "number of alternatives"),
        ([2, 2, 2, 2, 2], OUTSIDE, "too few for 5 levels"),
        ([0], OUTSIDE, "at least one alternative"),
        ([], [], "at least one level"),
    ],
)
def test_what_cannot_be_says_why(levels: list[object], private: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split(gpt(), levels, private=private)  # type: ignore[arg-type]


def test_tied_tensors_stay_together() -> None:
    with pytest.raises(ConfigError, match=r"head.weight, which is tied to wte.weight, is in two"):
        split(gpt(), [2, 2], private=["head", "norm"], shared=["wte", "wpe"])


def test_running_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(ConfigError, match=r"1.running_mean, 1.running_var are buffers"):
        split(model, [(2, ["0"])], private=["1"])


def test_a_model_without_a_trunk_wants_names() -> None:
    with pytest.raises(ConfigError, match="name the submodules"):
        split(nn.Linear(2, 2), [2])


def test_a_flat_model_computes_what_the_model_did() -> None:
    torch.manual_seed(0)
    model = gpt()
    ids = torch.randint(0, 256, (2, 16))
    before = model(ids)
    made = split(model, [2, 2], private=OUTSIDE)
    flat = FlatModel(model, made)
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)
    model(ids).logsumexp(-1).mean().backward()
    for group in made.groups:
        for slot in group.layout.slots:
            at = group.offset + slot.offset
            gradient = model.get_parameter(slot.name).grad
            assert gradient is not None and gradient.abs().sum() > 0
            torch.testing.assert_close(flat.gradient[at : at + slot.size], gradient.flatten())
    flat.load(np.zeros(made.size, np.float32))
    assert not model(ids).any()


def test_paths_and_modules_of_a_grid() -> None:
    grid = Grid((2, 3))
    assert [path.choice for path in grid.paths] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)
    ]  # fmt: skip
    assert [path.id for path in grid.through(Module(1, 2))] == [2, 5]
    assert [path.id for path in grid.through(Module(0, 1))] == [3, 4, 5]
    assert [module.cell for module in grid.modules][-1] == "module/1/2"
    assert len(Grid((1,), replicas=4).through(Module(0, 0))) == 4
