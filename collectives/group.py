"""A group: the members of one view, ready to reduce, gather and broadcast together."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral import _native
from decentral.collectives import staging, topk
from decentral.collectives.agreement import Agreement, assumed
from decentral.collectives.buffers import DTYPES, Buffer, buffer
from decentral.collectives.call import Call
from decentral.collectives.codecs import ENGINE_CODECS, codec_named
from decentral.collectives.cost import Choice, choose
from decentral.collectives.network import Network
from decentral.collectives.plan import Plan
from decentral.collectives.schedules import SCHEDULES, all_gather, broadcast, reduce_scatter
from decentral.collectives.schedules.segments import even_segments
from decentral.collectives.work import Work
from decentral.errors import ConfigError, DecentralError
from decentral.types import PeerId, View, raw_id

if TYPE_CHECKING:
    from decentral.types import Array

AGREE_FROM_BYTES = 4 << 20
"""Smaller operations are over before the members could tell each other anything."""
PROBE_FROM_BYTES = 16 << 20
"""From here on it pays to measure a network of which nothing is known."""
CHUNK_BYTES = 512 << 10
SMALL_CHUNK_BYTES = 64 << 10
"""Large chunks cost the processor less, small ones fill and drain the pipeline sooner."""
CHUNKS_PER_SEGMENT = 8
FAST_BYTES_S = 125e6
LAN_RTT_US = 1000
MANY_STREAMS = 8
"""Chunks are small where some member's network is slower than FAST_BYTES_S (not known yet: where
one is farther than LAN_RTT_US), or a link has so many streams that each of them is slow."""

_RESERVED_TAG = 0x8000_0000
_EXCHANGES = 128
"""Tags from `_RESERVED_TAG` on are the groups' own: so many for each tag below, because groups that
share members may agree on their networks at the same time."""
_MAX_TAG = _RESERVED_TAG // _EXCHANGES - 1
_KINDS = {"all-reduce": 0, "reduce-scatter": 1, "all-gather": 2, "broadcast": 3}


DENSE_UP_TO = 32
"""In a larger group not all are linked to all: "auto" takes what needs few links each."""
SPARSE = ("ring", "tree")


class Group:
    """The members of a view as an immutable group; rank order is the view's order.

    `endpoint` is this peer's native endpoint, with admitted links to the members that the plans
    make it exchange data with (with `schedule="auto"`: all). Cheap to make: one per view, or per
    operation. `network`: plan with this, the same on every member, instead of what is measured.
    """

    def __init__(
        self,
        endpoint: Any,
        view: View,
        me: PeerId,
        *,
        network: Network | None = None,
        connect: Callable[[Sequence[PeerId]], None] = lambda members: None,
        dense_up_to: int = DENSE_UP_TO,
    ) -> None:
        """`connect(members)`: see to it that there are links to these; it may take its time.
        `dense_up_to`: the same on all members, as many as are all linked to all."""
        if me not in view.members:
            raise ConfigError("this peer is not a member of the view", peer=me, phase="start")
        if network is not None and network.members != len(view.members):
            raise ConfigError(
                f"a network of {network.members} for {len(view.members)} members", phase="start"
            )
        self.view = view
        self.rank = view.rank(me)
        self._me = me
        self._endpoint = endpoint
        self._members = [raw_id(member) for member in view.members]
        self._engine = _native.Engine(endpoint)
        self._connect, self._dense_up_to = connect, dense_up_to
        self._given = network is not None
        self._lock = threading.Lock()
        # All members add to these in the same order, so that all see the same.
        self._networks = {(-1, 0): network or assumed(len(self))}  # by key; guarded by _lock
        self._waiting: dict[tuple[int, int], list[Callable[[Network], None]]] = {}  # likewise

    def __len__(self) -> int:
        return len(self._members)

    @property
    def network(self) -> Network:
        """What the members agreed on last, about themselves."""
        with self._lock:
            return self._networks[max(self._networks)]

    def subgroup(self, members: Sequence[PeerId]) -> Group:
        """Some members of this group (this peer among them), in this group's order. Operations of
        different groups must differ in round, attempt or tag."""
        chosen = [member for member in self.view.members if member in members]
        if len(chosen) != len(members):
            strangers = sorted(set(members) - set(chosen))
            raise ConfigError(f"not members of this group: {', '.join(strangers)}", phase="start")
        view = View(lineage=self.view.lineage, epoch=self.view.epoch, members=tuple(chosen))
        ranks = [self.view.rank(member) for member in chosen]
        network = self.network.subset(ranks) if self._given else None
        return Group(
            self._endpoint, view, self._me,
            network=network, connect=self._connect, dense_up_to=self._dense_up_to,
        )  # fmt: skip

    # ---- operations

    def all_reduce(
        self,
        src: Any,
        dst: Any,
        codec: str = "fp32",
        *,
        weights: Sequence[float] | None = None,
        schedule: str = "auto",
        clip_to_median: bool = False,
        **call: Any,
    ) -> Work:
        """Start dst = Σ weight_m · src_m / Σ weight_m over the members: the same bits for all.

        `src` and `dst` are distinct contiguous arrays of one size and dtype (see `buffers`),
        borrowed until the work is done; `src` is never written. `weights` has one entry per
        member, in rank order and the same on every member (default: equal). A weight of 0 is an
        absence: that member's `src` is not read, and may hold anything.

        `schedule` is one of `SCHEDULES`, or "auto": the cost model chooses, from what the members
        have measured. `codec` is one of `codecs.CODECS`; "topk" goes by all-gather whatever the
        schedule; with it, `clip_to_median` scales down whoever's 2-norm is above the median of
        those that count. `call`: see `Call`. Members that disagree about anything get a
        MismatchError before any data moves. Raises ConfigError for a call that cannot work.
        """
        if staging.lies_elsewhere(src) or staging.lies_elsewhere(dst):
            return self._all_reduce_staged(src, dst, codec, weights, schedule, call)
        options = self._options(call)
        source, result = buffer(src, "src"), buffer(dst, "dst", writable=True)
        if source.size != result.size or source.dtype != result.dtype:
            raise ConfigError(
                f"dst must be as src ({source.size} values of {source.dtype}), "
                f"not {result.size} of {result.dtype}",
                phase="start",
            )
        codec_named(codec)
        given, scale = _normalized(weights, len(self))
        if codec == "topk":
            return self._all_reduce_topk(source, result, given, scale, options, clip_to_median)
        if clip_to_median:
            raise ConfigError("clip_to_median goes with the codec topk only", phase="start")
        if schedule != "auto":
            self._permitted(schedule, codec)
        values, finish = result.target()
        work, count = Work(finish), source.size
        loaded = source.load()

        def start(network: Network) -> None:
            name = schedule if schedule != "auto" else self._choose(network, count, codec).schedule
            plan = _plan(name, network, self.rank, count)
            launched = self._start(
                "all-reduce", plan, name, loaded, values, options, codec=codec, dtype=source.dtype,
                weight=given[self.rank], scale=scale,
            )  # fmt: skip
            work.launch(launched, name)

        self._when_agreed(work, start, count * 4 if schedule == "auto" else 0, options)
        return work

    def reduce_scatter(
        self, src: Any, dst: Any, codec: str = "fp32", *,
        weights: Sequence[float] | None = None, **call: Any,
    ) -> Work:  # fmt: skip
        """As `all_reduce`, but each member gets its own part of the sum only: `dst[part]` with
        `part = group.part(count)`. The rest of `dst` is room to work in."""
        options = self._options(call)
        source, result = buffer(src, "src"), buffer(dst, "dst", writable=True)
        if (source.size, source.dtype, result.dtype) != (result.size, "fp32", "fp32"):
            raise ConfigError("src and dst must be fp32 and of one size", phase="start")
        given, scale = _normalized(weights, len(self))
        self._permitted("butterfly", codec)
        plan = reduce_scatter.plan(self.network, self.rank, self.cuts(source.size))
        work = Work()
        launched = self._start(
            "reduce-scatter", plan, "direct", source.raw, result.raw, options, codec=codec,
            weight=given[self.rank], scale=scale,
        )  # fmt: skip
        work.launch(launched, "direct")
        return work

    def all_gather(
        self, data: Any, codec: str = "fp32", *, cuts: Sequence[int] | None = None, **call: Any
    ) -> Work:
        """Every member's part of `data` to every member, in place.

        `data` is a contiguous fp32 array of one size on all members; member r brings elements
        [cuts[r], cuts[r + 1]) (default: `group.cuts`). With a lossy codec a member's own part
        becomes what the others receive.
        """
        options = self._options(call)
        place = buffer(data, "data", writable=True)
        if place.dtype != "fp32":
            raise ConfigError(f"all_gather moves fp32, not {place.dtype}", phase="start")
        where = self.cuts(place.size) if cuts is None else list(cuts)
        if len(where) != len(self) + 1 or where[0] != 0 or where[-1] != place.size:
            raise ConfigError(
                f"cuts must run from 0 to {place.size}, one per member", phase="start"
            )
        plan = all_gather.plan(self.network, self.rank, where)
        work = Work()
        work.launch(
            self._start("all-gather", plan, "gather", place.raw, place.raw, options, codec=codec),
            "gather",
        )
        return work

    def broadcast(self, data: Any, root: int, codec: str = "fp32", **call: Any) -> Work:
        """The root's `data` to all members, in place: a contiguous fp32 array of one size. With a
        lossy codec the root's own becomes what the others receive."""
        options = self._options(call)
        place = buffer(data, "data", writable=True)
        if place.dtype != "fp32":
            raise ConfigError(f"broadcast moves fp32, not {place.dtype}", phase="start")
        if not 0 <= root < len(self):
            raise ConfigError(f"no rank {root} among {len(self)} members", phase="start")
        plan = broadcast.plan(self.network, self.rank, place.size, root=root)
        work = Work()
        work.launch(
            self._start("broadcast", plan, "broadcast", place.raw, place.raw, options, codec=codec),
            "broadcast",
        )
        return work

    def barrier(self, **call: Any) -> Work:
        """Done when all members have come here."""
        nothing = np.zeros(1, np.float32)
        return self.all_reduce(nothing, np.empty_like(nothing), schedule="tree", **call)

    # ---- plans

    def cuts(self, count: int) -> list[int]:
        """Where the members' parts of `count` elements begin; one more for the end."""
        return [*(s.offset for s in even_segments(len(self), count)), count]

    def part(self, count: int) -> slice:
        """This member's part."""
        cuts = self.cuts(count)
        return slice(cuts[self.rank], cuts[self.rank + 1])

    def choose(self, count: int, codec: str = "fp32") -> Choice:
        """What "auto" would take for `count` values, with every schedule's estimated seconds."""
        return self._choose(self.network, count, codec)

    def measure(self, **call: Any) -> Network:
        """A collective call: measures the network if nothing is known, and agrees on it."""
        options = self._options(call)
        network = self._agree(options, may_probe=True)
        with self._lock:
            self._networks[options.round, options.attempt] = network
        return network

    def _choose(self, network: Network, count: int, codec: str) -> Choice:
        info = codec_named(codec)
        crowd = len(self) > self._dense_up_to and info.rides_ring
        return choose(network, count, info, allowed=SPARSE if crowd else None)

    def _permitted(self, schedule: str, codec: str) -> None:
        if schedule not in SCHEDULES:
            raise ConfigError(
                f"there is no schedule {schedule!r}: choose from auto, {', '.join(SCHEDULES)}",
                phase="start",
            )
        if not SCHEDULES[schedule].permits(rides_ring=codec_named(codec).rides_ring):
            raise ConfigError(
                f"{codec} cannot carry sums of several members, and {schedule} sends such: "
                "choose butterfly",
                phase="start",
            )

    # ---- agreement

    def _when_agreed(
        self, work: Work, start: Callable[[Network], None], size_bytes: int, call: Call
    ) -> None:
        """`start` with what the members agreed on: at once, or as soon as they have."""
        needs_no_talk = self._given or len(self) < 3 or size_bytes < AGREE_FROM_BYTES
        key = (call.round, call.attempt)
        with self._lock:
            earlier = [when for when in self._networks if when < key]
            known = self._networks.get(key)
            if needs_no_talk or known is not None:
                network = known or self._networks[max(earlier)]
            elif key in self._waiting:
                self._waiting[key].append(_failing(work, start))
                return
            else:
                self._waiting[key] = [_failing(work, start)]
                network = None
        if network is not None:
            start(network)
            return
        threading.Thread(
            target=self._agree_and_start,
            args=(key, call, work, size_bytes >= PROBE_FROM_BYTES),
            name="decentral-agree",
            daemon=True,
        ).start()

    def _agree_and_start(
        self, key: tuple[int, int], call: Call, work: Work, may_probe: bool
    ) -> None:
        error: DecentralError | None = None
        network = self.network
        try:
            network = self._agree(call, may_probe=may_probe)
        except DecentralError as failed:
            error = failed
        with self._lock:
            waiting = self._waiting.pop(key)
            if error is None:
                self._networks[key] = network
                for old in sorted(self._networks)[1:-2]:
                    del self._networks[old]
        for begin in waiting:
            begin(network) if error is None else begin.fail(error)  # type: ignore[attr-defined]

    def _agree(self, call: Call, *, may_probe: bool) -> Network:
        def gather(data: Array, number: int) -> float:
            cuts = [len(data) * rank // len(self) for rank in range(len(self) + 1)]
            options = Call(
                round=call.round, attempt=call.attempt, priority=0,
                tag=_RESERVED_TAG + _EXCHANGES * call.tag + number,
                silence_limit_s=call.silence_limit_s, start_limit_s=call.start_limit_s,
            )  # fmt: skip
            plan = all_gather.plan(assumed(len(self)), self.rank, cuts)
            work = Work()
            work.launch(self._start("all-gather", plan, "rows", data, data, options), "rows")
            work.wait()
            return work.stats.seconds

        agreement = Agreement(self._endpoint, self.view.members, self.rank)
        return agreement.reach(gather, may_probe=may_probe)

    # ---- to native code

    def _options(self, call: dict[str, Any]) -> Call:
        options = Call(**call)
        if not 0 <= options.tag <= _MAX_TAG:
            raise ConfigError(f"tags run from 0 to {_MAX_TAG}", phase="start")
        return options

    def _start(
        self, kind: str, plan: Plan, schedule: str, src: Array, dst: Array, call: Call, *,
        codec: str = "fp32", dtype: str = "fp32", weight: float = 1.0, scale: float = 1.0,
    ) -> Any:  # fmt: skip
        segments, steps = plan.plain()
        self._connect([self.view.members[rank] for rank in plan.partners()])
        info = codec_named(codec)
        return self._engine.start(
            kind=_KINDS[kind],
            members=self._members,
            rank=self.rank,
            count=src.size,
            dtype=DTYPES.index(dtype),
            codec=codec,
            final_codec=info.final if kind == "all-reduce" else codec,
            schedule=schedule,
            segments=segments,
            steps=steps,
            weight=weight,
            scale=scale,
            round=call.round,
            attempt=call.attempt,
            tag=call.tag,
            priority=call.priority,
            chunk_bytes=call.chunk_bytes or self._chunk_bytes(src.nbytes),
            silence_limit_ms=math.ceil(call.silence_limit_s * 1000),
            start_limit_ms=math.ceil(call.start_limit_s * 1000),
            staged=call.staged,
            src=src,
            dst=dst,
        )

    def _chunk_bytes(self, size_bytes: int) -> int:
        """Members may differ in it; it changes no bit."""
        links = [self._endpoint.stats_of(member) for member in self._members]
        rates = [rate for rate in self._endpoint.rates() if rate > 0]
        with self._lock:
            agreed = self._networks[max(self._networks)] if len(self._networks) > 1 else None
        if agreed is not None:
            rates += agreed.both_ways_bytes_s
        slow = (
            min(rates) < FAST_BYTES_S
            if rates
            else any(link.min_rtt_us > LAN_RTT_US for link in links)
        )
        many = max(link.bulk_streams for link in links) > MANY_STREAMS
        if slow or many:
            return SMALL_CHUNK_BYTES
        even = size_bytes // (CHUNKS_PER_SEGMENT * len(self))
        return min(max(SMALL_CHUNK_BYTES, even), CHUNK_BYTES)

    def _all_reduce_staged(
        self,
        src: Any,
        dst: Any,
        codec: str,
        weights: Sequence[float] | None,
        schedule: str,
        call: dict[str, Any],
    ) -> Work:
        """The same, with copies to and from the device while chunks are on the wire."""
        if codec not in ENGINE_CODECS:
            raise ConfigError(f"{codec} takes tensors in this machine's memory", phase="start")

        def start(host_src: Array, host_dst: Array) -> Work:
            return self.all_reduce(
                host_src, host_dst, codec, weights=weights, schedule=schedule, staged=True, **call
            )

        return staging.all_reduce(src, dst, start)

    def _all_reduce_topk(
        self, source: Buffer, result: Buffer, weights: list[float], scale: float, call: Call,
        clip_to_median: bool,
    ) -> Work:  # fmt: skip
        """Every member's encoding to every member; each adds them up in rank order."""
        values, bring = result.target()
        size = topk.encoded_size(source.size)
        stride = -(-size // 4)
        wire = np.zeros(stride * len(self), np.float32)
        places = [wire[stride * r : stride * (r + 1)].view(np.uint8) for r in range(len(self))]
        if weights[self.rank]:
            places[self.rank][:size] = np.frombuffer(topk.encode(source.load()), np.uint8)

        def finish() -> None:
            sent = {r: places[r][:size].tobytes() for r, weight in enumerate(weights) if weight}
            clips = topk.clips_to_median(sent, values) if clip_to_median else {}
            values[:] = 0
            for rank, data in sent.items():
                factor = np.float32(weights[rank]) * np.float32(scale)
                topk.decode_add(data, values, float(factor * np.float32(clips.get(rank, 1.0))))
            if bring is not None:
                bring()

        cuts = [stride * rank for rank in range(len(self) + 1)]
        plan = all_gather.plan(self.network, self.rank, cuts)
        work = Work(finish)
        work.launch(self._start("all-gather", plan, "topk", wire, wire, call), "topk")
        return work


class _failing:
    """`start(network)` whose own error ends up in the work instead of in a thread."""

    def __init__(self, work: Work, start: Callable[[Network], None]) -> None:
        self._work, self._start = work, start

    def __call__(self, network: Network) -> None:
        try:
            self._start(network)
        except DecentralError as error:
            self._work.fail(error)

    def fail(self, error: DecentralError) -> None:
        self._work.fail(error)


@functools.lru_cache(maxsize=64)
def _plan(schedule: str, network: Network, rank: int, count: int) -> Plan:
    return SCHEDULES[schedule].plan(network, rank, count)


def _normalized(weights: Sequence[float] | None, members: int) -> tuple[list[float], float]:
    """(weights, the scale that all share): fp32, from the same weights everywhere."""
    given = [1.0] * members if weights is None else [float(np.float32(w)) for w in weights]
    if len(given) != members:
        raise ConfigError(f"{len(given)} weights for {members} members", phase="start")
    if not all(math.isfinite(w) and w >= 0 for w in given):
        raise ConfigError("weights must be finite and not negative", phase="start")
    total = math.fsum(given)  # exact, so its order does not matter
    if total == 0:
        raise ConfigError("at least one member must have a weight above zero", phase="start")
    return given, float(np.float32(1.0 / total))
