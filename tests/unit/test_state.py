"""The committed state: its layout, its names, its hash, and the edge to torch."""

from __future__ import annotations

import native_standin
import numpy as np
import pytest
import torch

from decentral import _native
from decentral.errors import ConfigError, DivergenceError
from decentral.model_tensors import ModelTensors
from decentral.state import META_BYTES, Layout, Meta, aligned_zeros, seal, unseal
from decentral.types import CommittedState


class Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3, dtype=dtype)
        self.frozen = torch.nn.Linear(3, 3, dtype=dtype)
        self.frozen.requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(3, dtype=dtype)
        self.head = torch.nn.Linear(3, 5, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.register_buffer("scratch", torch.zeros(7), persistent=False)
        self.gain = torch.nn.Parameter(torch.tensor(2.0, dtype=dtype))


def sealed(model: torch.nn.Module, meta: Meta | None = None):
    tensors = ModelTensors(model)
    momentum = aligned_zeros(tensors.layout.trainable)
    return tensors, seal(tensors.layout, tensors.as_read(), momentum, meta or Meta())


def test_tensors_are_named_once_and_grouped():
    tensors = ModelTensors(Model())
    kinds = {slot.name: slot.kind for slot in tensors.layout.slots}
    assert kinds == {
        "embedding.weight": "trainable",
        "norm.weight": "trainable",
        "norm.bias": "trainable",
        "gain": "trainable",
        "norm.running_mean": "buffer",
        "norm.running_var": "buffer",
        "frozen.weight": "frozen",
        "frozen.bias": "frozen",
    }
    names = [spec.name for spec in tensors.layout.schema()]
    assert names == sorted(names)
    assert "momentum/gain" in names and "momentum/frozen.bias" not in names
    assert "buffer/norm.running_var" in names and "run/meta" in names


def test_every_tensor_is_a_view_on_a_64_byte_boundary():
    tensors, held = sealed(Model())
    layout = tensors.layout
    assert layout.trainable <= layout.exchanged <= layout.total
    for slot in layout.slots:
        prefix = "buffer" if slot.kind == "buffer" else "param"
        array = held.state.tensors[f"{prefix}/{slot.name}"]
        assert array.base is not None and np.shares_memory(array, held.theta)
        assert array.ctypes.data % 64 == 0
        assert array.shape == slot.shape and not array.flags.writeable


def test_state_survives_the_way_through_named_tensors():
    model = Model()
    _, held = sealed(model, Meta(round=3, tokens=99, target_rounds=7, strategy="diloco"))
    other = Model()
    tensors = ModelTensors(other)
    copies = {name: array.copy() for name, array in held.state.tensors.items()}
    back = unseal(tensors.layout, CommittedState(round=3, tensors=copies, root=held.root))
    assert back.meta == held.meta and back.root == held.root
    tensors.write(back.theta)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_changed_bit_or_a_wrong_shape_is_a_divergence():
    tensors, held = sealed(Model())
    copies = {name: array.copy() for name, array in held.state.tensors.items()}
    copies["param/gain"][...] += 1
    with pytest.raises(DivergenceError, match="hashes to"):
        unseal(tensors.layout, CommittedState(round=0, tensors=copies, root=held.root))
    copies["param/gain"] = np.zeros(2, dtype=np.float32)
    with pytest.raises(DivergenceError, match="param/gain"):
        unseal(tensors.layout, CommittedState(round=0, tensors=copies, root=held.root))


def test_low_precision_parameters_have_fp32_masters():
    model = Model(torch.bfloat16)
    tensors, held = sealed(model)
    assert tensors.lossy and held.theta.dtype == np.float32
    tensors.write(held.theta)
    assert model.gain.dtype == torch.bfloat16


def test_a_model_that_cannot_be_exchanged_is_refused():
    with pytest.raises(ConfigError, match="no trainable"):
        ModelTensors(torch.nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ConfigError, match="complex"):
        ModelTensors(torch.nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="no data"):
        ModelTensors(torch.nn.Linear(2, 2, device="meta"))


def test_meta_has_one_form_and_a_fixed_size():
    meta = Meta(round=2, tokens=10**12, target_tokens=10**13, shared={"b": 1, "a": "x"})
    packed = meta.pack()
    assert packed.shape == (META_BYTES,) and packed.dtype == np.uint8
    assert Meta.unpack(packed) == meta
    assert np.array_equal(packed, Meta.unpack(packed).pack())
    for damage in (packed[::-1].copy(), np.zeros(META_BYTES, np.uint8), np.append(packed[:-1], 1)):
        with pytest.raises(DivergenceError, match="run/meta"):
            Meta.unpack(damage.astype(np.uint8))


def test_meta_knows_when_the_run_is_complete():
    assert not Meta(round=5).complete
    assert Meta(round=5, target_rounds=5).complete
    assert not Meta(round=5, target_rounds=6).complete
    assert Meta(tokens=7, target_tokens=6).complete


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 5 * 262_144 + 3])
def test_native_hash_is_the_specified_one(size: int):
    array = np.arange(size, dtype=np.float32)
    leaves = native_standin.leaf_hashes(array)
    assert _native.leaf_hashes(array) == leaves
    of = ("param/x", "float32", (size,), array.nbytes, leaves)
    root = native_standin.tensor_root(*of)
    assert _native.tensor_root(*of) == root
    roots = [("b", root), ("a", b"\1" * 32)]
    assert _native.state_root(roots) == native_standin.state_root(roots)


def test_native_arithmetic_is_the_specified_one():
    rng = np.random.default_rng(0)
    theta, momentum, delta = rng.standard_normal((3, 1001)).astype(np.float32)
    mine, theirs = np.empty((2, 1001), np.float32), np.empty((2, 1001), np.float32)
    native_standin.outer_nesterov(theta, momentum, delta, 0.7, 0.9, *mine)
    _native.outer_nesterov(theta, momentum, delta, 0.7, 0.9, *theirs)
    assert mine.tobytes() == theirs.tobytes()
    _native.subtract(theta, delta, theirs[0])
    assert (theta - delta).tobytes() == theirs[0].tobytes()
    assert _native.all_finite(theta)
    for bad in (np.nan, np.inf, -np.inf):
        theta[17] = bad
        assert not _native.all_finite(theta)


def test_layout_refuses_two_tensors_of_one_name():
    with pytest.raises(ConfigError, match="same name"):
        Layout.of([("a", "trainable", (1,)), ("a", "buffer", (1,))])
