"""Guests: invited and admitted, and then hostile. Each function is one session with a peer.

malformed      one wrong message a session: it ends there
stale          a thousand claims about what is over, or of another lineage: the session goes on
collective     frames of operations that it has no part in, with true and wrong keys
bulk           bulk streams, opened as they should be, and then nonsense on them
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from decentral.churn.hostile import wire
from decentral.churn.hostile.forgery import KINDS, Forger, Scene
from decentral.churn.hostile.mutations import Mutator
from decentral.churn.hostile.replays import FORGED
from decentral.churn.hostile.wire import Frame, Papers, Wire, message_frames, of_core
from decentral.errors import DecentralError, ProtocolError
from decentral.peer import messages
from decentral.peer.calls.messages import Answer, Call, inline, is_call
from decentral.peer.calls.messages import unpack_message as unpack_call
from decentral.peer.transfer import UpdateWanted, is_transfer

HEAR_S = 3.0
STALE_ROUNDS = 3
BATCH = 50


@dataclass(frozen=True, slots=True)
class Told:
    """What a session came to."""

    sent: int
    ended: bool
    """The peer closed the connection."""


class Guest:
    def __init__(self, papers: Papers, address: str, rng: Random) -> None:
        self.papers, self.address, self.rng = papers, address, rng
        self._mutate = Mutator(rng)
        self._boots = 0

    def sessions(self) -> dict[str, Callable[[], Told]]:
        return {
            "malformed messages": self.malformed,
            "malformed transfer messages": self.transfer,
            "malformed calls": self.call,
            "stale and foreign messages": self.stale,
            "collective frames": self.collective,
            "bulk frames": self.bulk,
        }

    # -------------------------------------------------------------- coming in

    def _enter(self) -> tuple[Wire, Scene, Frame]:
        """A link on which this guest has greeted, the log as it was told, and a frame's stamps."""
        link = Wire(self.papers, self.address)
        try:
            link.admit()
            self._boots += 1
            asked = False
            for payload in link.messages(HEAR_S):
                if not of_core(payload):
                    continue
                message = messages.unpack(payload)
                if isinstance(message, messages.Hello) and not asked:
                    asked = True
                    greeting = replace(
                        message, boot=self.rng.randbytes(16), boot_seq=self._boots,
                        name=self.papers.name, address="", member=False, lineage="", epoch=0,
                        slot=0, samples=0, ancestry=(),
                    )  # fmt: skip
                    link.send(message_frames(messages.pack(greeting)))
                    link.send(message_frames(messages.pack(messages.JoinRequest("", 0))))
                    run, fingerprint = message.run, message.fingerprint
                elif isinstance(message, messages.Snapshot):
                    scene = Scene(run, fingerprint, message.state, self.papers.identity.peer_id)
                    return link, scene, link.last
            raise ProtocolError("it told no snapshot", phase="guest")
        except BaseException:
            link.close()
            raise

    def _say(self, link: Wire, data: bytes) -> bool:
        """False once the other end has had enough."""
        try:
            link.send(data)
        except OSError:
            return False
        return True

    # -------------------------------------------------------------- messages

    def malformed(self) -> Told:
        link, scene, _ = self._enter()
        with link:
            forger = Forger(self.rng, scene)
            payload = self._wrong(lambda: forger.payload(self.rng.choice(KINDS)), messages.unpack)
            self._say(link, message_frames(payload, self.rng.randrange(3)))
            return Told(1, link.ended())

    def transfer(self) -> Told:
        from decentral.peer.transfer import unpack_message

        link, scene, _ = self._enter()
        with link:
            asked = UpdateWanted(scene.state.scopes[0].round + 1, scene.state.scopes[0].root)
            wrong = self._wrong(asked.pack, unpack_message)
            if not is_transfer(wrong):
                wrong = asked.pack()[:-1]
            self._say(link, message_frames(wrong, 2))
            return Told(1, link.ended())

    def call(self) -> Told:
        link, _, _ = self._enter()
        with link:
            call = Call(1, "echo", *inline(self.rng.randbytes(9)))
            wrong = self._wrong(call.pack, unpack_call)
            if not is_call(wrong):  # or one that is right, and speaks of what there is not
                wrong = Answer(1, 0, b"").pack()
            self._say(link, message_frames(wrong, self.rng.randrange(3)))
            return Told(1, link.ended())

    def _wrong(self, make: Callable[[], bytes], read: Callable[[bytes], object]) -> bytes:
        """A mutation that can be seen to be wrong."""
        while True:
            payload = self._mutate(make(), make())
            try:
                read(payload)
            except ProtocolError:
                return payload

    def stale(self, count: int = 1000) -> Told:
        """Heeding none of it, the peer has no reason to hang up."""
        link, scene, _ = self._enter()
        with link:
            forger = Forger(self.rng, scene)
            told = self._until_older(link, scene)
            sent = 0
            for _ in range(count // BATCH if told else 0):
                payloads = [forger.payload(self.rng.choice(FORGED)) for _ in range(BATCH)]
                if not self._say(link, b"".join(message_frames(one) for one in payloads)):
                    return Told(sent, True)
                sent += BATCH
                for _ in link.messages(0.02):
                    pass
            return Told(sent, link.ended(1.0))

    @staticmethod
    def _until_older(link: Wire, scene: Scene) -> bool:
        """Wait until what the scene says is over by so many slots that none of it is due."""
        # `Forger.near` goes up to five ahead.
        due = scene.state.slot + 5 + STALE_ROUNDS
        for payload in link.messages(10.0):
            if not of_core(payload):
                continue
            message = messages.unpack(payload)
            if isinstance(message, messages.Snapshot) and message.state.slot >= due:
                return True
        return False

    # -------------------------------------------------------------- frames

    def collective(self, count: int = 200) -> Told:
        link, scene, stamped = self._enter()
        with link:
            sent = 0
            for _ in range(count):
                kind = self.rng.choice((wire.OP_READY, wire.OP_ABORT))
                size = self.rng.choice((0, 8, 112, 112, 112, 200, 1 << 16))
                payload = bytearray(self.rng.randbytes(size))
                if size == 112 and self.rng.random() < 0.5:
                    payload[:12] = b"\x01\0\0\0\xff\xff\xff\x7f\0\0\x10\0"
                frame = Frame(
                    type=kind,
                    payload=bytes(payload),
                    flags=self.rng.choice((0, 1, 0xFF)),
                    run=stamped.run,
                    lineage=stamped.lineage,
                    epoch=stamped.epoch,
                    round=scene.state.scopes[0].round + self.rng.choice((0, 1, 1, 2, 1 << 40)),
                    attempt=self.rng.choice((1, 2, 3, 4, 0, (1 << 32) - 1)),
                    tag=self.rng.choice((0, 0, 1, 2, self.rng.getrandbits(32))),
                    sequence=self.rng.getrandbits(64),
                )
                if not self._say(link, frame.encode()):
                    return Told(sent, True)
                sent += 1
            absurd = Frame(type=wire.PROBE, payload=bytes(8), attempt=(1 << 32) - 1)
            self._say(link, absurd.encode())
            return Told(sent + 1, link.ended(0.5))

    def bulk(self) -> Told:
        link, _, stamped = self._enter()
        with link, contextlib.ExitStack() as streams:
            link.send(Frame(type=wire.BULK_WANTED).encode())
            token = b""
            for frame in link.frames(HEAR_S):
                if frame.type == wire.BULK_WANTED and len(frame.payload) == 32:
                    token = frame.payload
                    break
            if not token:
                return Told(1, link.ended(0.5))
            count, opened = 2, []
            for index in range(count):
                one = streams.enter_context(Wire(self.papers, self.address, wire.BULK_ALPN))
                hello = Frame(type=wire.BULK_HELLO, payload=token, tag=index, attempt=count)
                one.send(hello.encode())
                opened.append(one)
            if self.rng.random() < 0.7:  # else before they are all bound, which fails the opening
                for one in opened:
                    next(one.frames(HEAR_S), None)
            sent = 1 + count
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline and self._say(opened[0], self._bulk_frame(stamped)):
                sent += 1
                if sent > 60:
                    break
            return Told(sent, link.ended(1.0))

    def _bulk_frame(self, stamped: Frame) -> bytes:
        rng = self.rng
        kind = rng.choice((wire.CHUNK, wire.CHUNK, wire.BLOB, wire.BLOB, wire.BULK_HELLO, 99))
        length = rng.choice((None, None, None, None, 1 << 22, (1 << 32) - 1))
        payload = rng.randbytes(rng.choice((0, 10, 4096, 100_000)))
        if rng.random() < 0.1:
            return payload
        return Frame(
            type=kind, payload=payload, length=length, flags=rng.choice((0, 0, 1, 255)),
            run=stamped.run, lineage=stamped.lineage, epoch=stamped.epoch,
            round=rng.choice((1, 2, rng.getrandbits(64))), attempt=rng.choice((1, 2, 100_000)),
            tag=rng.choice((0, 1, rng.getrandbits(32))),
            sequence=rng.choice((0, 1 << 32, 1 << 18, rng.getrandbits(64))),
        ).encode()  # fmt: skip


def attempt(session: Callable[[], Told]) -> Told | None:
    """None where the peer did not even let it in: that too is an answer."""
    try:
        return session()
    except (OSError, DecentralError):
        return None
