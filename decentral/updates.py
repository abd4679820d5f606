"""A committed round's mean outer gradient, as it travels to those who hold the state before it.

    update/data   the mean, encoded by the run's codec where that loses no bit, else fp32
    update/how    msgpack: codec and tokens, the other thing that the next state depends on

`decode(encode(x)) == x` holds for what a codec's all-reduce gives, so int8 saves three bytes in
four. It is checked all the same: the next state must have the committed root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from decentral.errors import DivergenceError
from decentral.state import aligned_zeros, hash_state
from decentral.types import CommittedState

if TYPE_CHECKING:
    from decentral.types import Array

DATA, HOW = "update/data", "update/how"
MAX_TOKENS = 2**62


def pack_update(round: int, mean: Array, codec: str, tokens: int) -> CommittedState:
    """A copy that outlives `mean`, hashed like a state. `codec`: the run's; what its sums travel as
    is tried first."""
    from decentral import _native

    codec = {name: final for name, *_, final in _native.codecs()}.get(codec, "fp32")
    data = np.empty(_native.encoded_size(codec, mean.size), np.uint8)
    _native.encode_into(codec, mean, data)
    back = np.empty_like(mean)
    _native.decode(codec, data, back)
    if not np.array_equal(back.view(np.uint32), mean.view(np.uint32)):
        codec, data = "fp32", mean.view(np.uint8).copy()
    how = msgpack.packb({"codec": codec, "tokens": tokens})
    tensors: dict[str, NDArray[Any]] = {DATA: data, HOW: np.frombuffer(how, np.uint8)}
    root, leaves = hash_state(tensors)
    return CommittedState(round=round, tensors=tensors, root=root, leaves=leaves)


def unpack_update(data: NDArray[Any], how: NDArray[Any], count: int) -> tuple[Array, int]:
    """(mean, tokens). DivergenceError if it is no update of so many values."""
    from decentral import _native

    try:
        fields = msgpack.unpackb(how.tobytes(), max_map_len=2, max_array_len=0)
        codec, tokens = fields["codec"], fields["tokens"]
        if type(tokens) is not int or not 0 <= tokens < MAX_TOKENS:
            raise ValueError("its tokens are no count")
        known = {name for name, *_ in _native.codecs()}
        if codec not in known or data.size != _native.encoded_size(codec, count):
            raise ValueError("its codec or size is another")
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        says = f"an update cannot be read: {error}"
        raise DivergenceError(says, phase="replay") from None
    mean = aligned_zeros(count)
    _native.decode(codec, data, mean)
    if not _native.all_finite(mean):
        raise DivergenceError("an update holds values that are not finite", phase="replay")
    return mean, tokens
