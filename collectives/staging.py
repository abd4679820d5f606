"""All-reduce of tensors in a device's memory: chunks cross PCIe while others cross the wire.

    device src ──copy──▶ pinned src ──▶ engine ──▶ pinned dst ──copy──▶ device dst
        chunk k + 1          chunk k                 final pieces, as they arrive

Staging areas are page-locked and kept for the next operation of their size. Values are fp32 on the
host; other dtypes are converted by the device on the way. Everything works on CPU tensors, too:
copies are then plain memory copies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from decentral.collectives.work import Work
from decentral.errors import ConfigError, DecentralError

if TYPE_CHECKING:
    from decentral.types import Array

CHUNK_ELEMENTS = 1 << 20
"""What one copy carries: 4 MiB keep PCIe busy."""
_POLL_S = 0.001
"""How soon a piece that has become final is noticed."""

Start = Callable[["Array", "Array"], Work]
"""(pinned src, pinned dst) → the staged operation, which the engine runs."""


def lies_elsewhere(tensor: Any) -> bool:
    """Whether it is a tensor in a device's memory."""
    return str(getattr(getattr(tensor, "device", None), "type", "cpu")) != "cpu"


class Pinned:
    """Staging areas by size, reused: page-locking memory is slow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[tuple[int, bool], list[Any]] = {}  # guarded by _lock

    def take(self, elements: int, *, pin: bool) -> Any:
        import torch

        with self._lock:
            kept = self._free.get((elements, pin))
            if kept:
                return kept.pop()
        return torch.empty(elements, dtype=torch.float32, pin_memory=pin)

    def give(self, area: Any, *, pin: bool) -> None:
        with self._lock:
            self._free.setdefault((area.numel(), pin), []).append(area)

    def clear(self) -> None:
        with self._lock:
            self._free.clear()


POOL = Pinned()


def all_reduce(src: Any, dst: Any, start: Start) -> Work:
    """Run `start` on staging areas of `src` and `dst`: contiguous tensors of one size, on any
    device. The work is done when `dst` holds the result on its device. ConfigError for tensors
    that cannot be staged."""
    for name, tensor in (("src", src), ("dst", dst)):
        if not tensor.is_contiguous():
            raise ConfigError(f"{name} must be contiguous", phase="start")
    if src.numel() != dst.numel() or src.dtype != dst.dtype:
        raise ConfigError("dst must be as src", phase="start")
    pin = lies_elsewhere(src) or lies_elsewhere(dst)
    staged_src, staged_dst = POOL.take(src.numel(), pin=pin), POOL.take(src.numel(), pin=pin)
    try:
        work = start(staged_src.numpy(), staged_dst.numpy())
    except BaseException:
        POOL.give(staged_src, pin=pin)
        POOL.give(staged_dst, pin=pin)
        raise
    courier = _Courier(work, src.detach().view(-1), dst.detach().view(-1), staged_src, staged_dst)
    work.accompany(courier.join)
    courier.start()
    return work


class _Courier(threading.Thread):
    """Carries one operation's values to the host and back."""

    def __init__(self, work: Work, src: Any, dst: Any, staged_src: Any, staged_dst: Any) -> None:
        super().__init__(name="decentral-staging", daemon=True)
        self._work, self._src, self._dst = work, src, dst
        self._staged_src, self._staged_dst = staged_src, staged_dst
        self._failed: Exception | None = None

    def run(self) -> None:
        pin = lies_elsewhere(self._src) or lies_elsewhere(self._dst)
        try:
            op = self._work.launched_op()
            if op is not None:
                self._to_host(op)
                self._to_device(op)
        except Exception as error:  # the device's: the operation must not wait for ever
            self._failed = error
            self._work.abort(f"the device failed: {error}")
        finally:
            POOL.give(self._staged_src, pin=pin)
            POOL.give(self._staged_dst, pin=pin)

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self._failed is not None:
            raise DecentralError(f"the device failed: {self._failed}", phase="staging")

    def _to_host(self, op: Any) -> None:
        """One copy is under way while the engine works on what is there already."""
        lane = _lane(self._src)
        under_way: list[tuple[int, Any]] = []
        count = self._src.numel()
        for begin in range(0, max(count, 1), CHUNK_ELEMENTS):
            end = min(count, begin + CHUNK_ELEMENTS)
            arrived = lane.copy(self._staged_src[begin:end], self._src[begin:end])
            under_way.append((end, arrived))
            if len(under_way) > 1:
                done, event = under_way.pop(0)
                event()
                op.source_ready(done)
        for done, event in under_way:
            event()
            op.source_ready(done)

    def _to_device(self, op: Any) -> None:
        lane = _lane(self._dst)
        over = False
        while not over:
            over = op.wait(_POLL_S)
            last = None
            for offset, count in op.take_final():
                piece = slice(offset, offset + count)
                last = lane.copy(self._dst[piece], self._staged_dst[piece])
            if last is not None:
                last()


class _HostLane:
    """Copies within this machine's memory are over when they return."""

    def copy(self, into: Any, source: Any) -> Callable[[], None]:
        into.copy_(source)
        return lambda: None


class _CudaLane:
    """Copies on a stream of their own, behind what the caller's stream has queued so far."""

    def __init__(self, device: Any) -> None:
        import torch

        self._cuda: Any = torch.cuda  # untyped where it is made
        self._stream = self._cuda.Stream(device)
        self._stream.wait_stream(self._cuda.default_stream(device))

    def copy(self, into: Any, source: Any) -> Callable[[], None]:
        with self._cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
            event = self._cuda.Event()
            event.record(self._stream)
        wait: Callable[[], None] = event.synchronize
        return wait


def _lane(tensor: Any) -> _HostLane | _CudaLane:
    return _CudaLane(tensor.device) if lies_elsewhere(tensor) else _HostLane()
