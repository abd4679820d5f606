"""Port mapping: strict readers, and what comes of routers that lie, stall or know half of it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import PortMappingError, ProtocolError
from decentral.peer.runtime import natpmp, pcp, port_mapping_ways
from decentral.peer.runtime.gateway import find_gateway, is_hidden
from decentral.peer.runtime.natpmp import Granted
from decentral.peer.runtime.port_mapping import PortMapper, map_port
from decentral.peer.runtime.port_mapping_ways import Mapping, NatPmp, Pcp, in_thread

NONCE = b"123456789012"


def natpmp_mapping(inner: int = 4242, outer: int = 5000, life: int = 60, result: int = 0) -> bytes:
    return struct.pack(">BBHIHHI", 0, 130, result, 7, inner, outer, life)


def natpmp_address(address: bytes = b"\x05\x06\x07\x08") -> bytes:
    return struct.pack(">BBHI", 0, 128, 0, 7) + address


def pcp_mapping(
    nonce: bytes = NONCE, inner: int = 4242, outer: int = 5000, life: int = 60, result: int = 0,
    address: bytes = bytes(10) + b"\xff\xff\x05\x06\x07\x08",
) -> bytes:  # fmt: skip
    head = struct.pack(">BBBBII12x", 2, 0x81, 0, result, life, 7)
    return head + struct.pack(">12sB3xHH", nonce, 6, inner, outer) + address


# ------------------------------------------------------------------------------------ readers


def test_answers_are_read() -> None:
    assert natpmp.read_address(natpmp_address()) == "5.6.7.8"
    assert natpmp.read_mapping(natpmp_mapping(), 4242) == Granted(5000, 60, 7)
    assert pcp.read_mapping(pcp_mapping(), NONCE, 4242) == ("5.6.7.8", Granted(5000, 60, 7))
    pcp.read_whether_there(struct.pack(">BBBBII12x", 2, 0x80, 0, 0, 0, 7))


def test_requests_have_the_lengths_of_the_rfcs() -> None:
    assert natpmp.ask_mapping(4242, 4242, 3600).hex() == "0002000010921092" + "00000e10"
    ask = pcp.ask_mapping("192.168.7.2", NONCE, 4242, ("0.0.0.0", 0), 3600)
    assert len(ask) == 60 and ask[:2] == b"\x02\x01" and ask[8:24].hex().endswith("ffffc0a80702")
    assert len(pcp.ask_whether_there("192.168.7.2")) == 24


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        natpmp_mapping()[:-1],
        natpmp_mapping() + b"\0",
        natpmp_mapping(inner=4243),
        natpmp_mapping(outer=0),
        natpmp_address(),
        b"\x01" + natpmp_mapping()[1:],
    ],
)
def test_natpmp_takes_exactly_its_answers(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        natpmp.read_mapping(reply, 4242)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        pcp_mapping()[:-4],
        pcp_mapping() + b"\0",
        pcp_mapping() + bytes(1100),
        pcp_mapping(nonce=b"another one!"),
        pcp_mapping(nonce=b"another one!", result=2),
        pcp_mapping(inner=4243),
        pcp_mapping(outer=0),
        pcp_mapping(address=bytes(16)),
        struct.pack(">BBBBII12x", 2, 0x80, 0, 0, 0, 7),
    ],
)
def test_pcp_takes_exactly_its_answers(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        pcp.read_mapping(reply, NONCE, 4242)


def test_refusals_are_sentences() -> None:
    with pytest.raises(PortMappingError, match="switched port mapping off"):
        natpmp.read_mapping(natpmp_mapping(result=2), 4242)
    with pytest.raises(PortMappingError, match="behind another NAT"):
        pcp.read_mapping(pcp_mapping(result=7), NONCE, 4242)
    with pytest.raises(PortMappingError, match="result 99"):
        pcp.read_mapping(pcp_mapping(result=99), NONCE, 4242)
    with pytest.raises(PortMappingError, match="NAT-PMP only"):
        pcp.read_whether_there(struct.pack(">BBHI", 0, 128, 1, 7))


replies = st.one_of(
    st.binary(max_size=80),
    st.tuples(st.sampled_from([natpmp_mapping(), natpmp_address(), pcp_mapping()]),
              st.integers(0, 59), st.integers(0, 255)).map(
        lambda c: bytes([*c[0][: c[1]], c[2], *c[0][c[1] + 1 :]])),
)  # fmt: skip


@given(replies)
def test_hostile_bytes_raise_what_is_documented(reply: bytes) -> None:
    for read in (
        natpmp.read_address,
        lambda data: natpmp.read_mapping(data, 4242),
        pcp.read_whether_there,
        lambda data: pcp.read_mapping(data, NONCE, 4242),
    ):
        try:
            read(reply)  # type: ignore[operator]
        except (PortMappingError, ProtocolError) as error:
            assert error.says


ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask	MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	100	00000000	0	0	0
wlan0	00000000	0107A8C0	0003	0	0	20	00000000	0	0	0
tun0	00000000	00000000	0001	0	0	0	00000000	0	0	0
eth0	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
"""


def test_the_gateway_of_the_best_default_route() -> None:
    assert find_gateway(ROUTES) == "192.168.7.1"
    assert find_gateway(ROUTES.splitlines()[0]) is None and find_gateway("") is None


@given(st.text(max_size=300))
def test_any_routing_table(text: str) -> None:
    find_gateway("head\n" + text)


def test_hidden_addresses() -> None:
    for hidden in ("10.1.2.3", "100.64.0.1", "192.168.1.1", "172.31.255.1", "169.254.1.1"):
        assert is_hidden(hidden)
    for shown in ("5.6.7.8", "100.128.0.1", "172.32.0.1"):
        assert not is_hidden(shown)


# ------------------------------------------------------------------------------------ routers


class Router(asyncio.DatagramProtocol):
    """Answers on loopback as `answer` says."""

    def __init__(self, answer: Callable[[bytes], list[bytes]]) -> None:
        self.answer = answer
        self.asked: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: object) -> None:
        self.asked.append(data)
        for reply in self.answer(data):
            self.transport.sendto(reply, address)  # type: ignore[attr-defined]


def with_router(
    answer: Callable[[bytes], list[bytes]], use: Callable[[Router, int], Awaitable[None]]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, router = await loop.create_datagram_endpoint(
            lambda: Router(answer), local_addr=("127.0.0.1", 0)
        )
        try:
            await use(router, transport.get_extra_info("sockname")[1])
        finally:
            transport.close()

    asyncio.run(main())


def old_router(address: bytes) -> Callable[[bytes], list[bytes]]:
    """Speaks NAT-PMP only."""

    def answer(data: bytes) -> list[bytes]:
        if data[0] != 0:
            return [struct.pack(">BBHI", 0, 128 + data[1], 1, 7)]
        if data == natpmp.ASK_ADDRESS:
            return [natpmp_address(address)]
        _, _, _, inner, outer, life = struct.unpack(">BBHHHI", data)
        return [natpmp_mapping(inner, outer or 0, life)]

    return answer


def test_a_router_behind_another_nat_is_recognised() -> None:
    async def use(router: Router, port: int) -> None:
        ways = [Pcp("127.0.0.1", port), NatPmp("127.0.0.1", port)]
        mapping, way = await map_port(4242, 0, ways)
        assert way is ways[1] and mapping.external == "100.64.9.9:4242" and mapping.double_nat
        assert "behind another NAT" in mapping.says()
        await way.unmap(4242, mapping)
        assert router.asked[-1] == natpmp.ask_mapping(4242, 0, 0)

    with_router(old_router(b"\x64\x40\x09\x09"), use)


def test_nonsense_is_passed_over_and_a_flood_of_it_ends_the_wait() -> None:
    def noisy(data: bytes) -> list[bytes]:
        return [b"nonsense"] * 5 + old_router(b"\x05\x06\x07\x08")(data)

    async def use(_: Router, port: int) -> None:
        mapping = await NatPmp("127.0.0.1", port).map(4242, 4242)
        assert mapping.external == "5.6.7.8:4242" and not mapping.double_nat

    with_router(noisy, use)

    async def give_up(_: Router, port: int) -> None:
        with pytest.raises(PortMappingError, match="nonsense"):
            await NatPmp("127.0.0.1", port).find()

    with_router(lambda data: [b"nonsense"] * 200, give_up)


def test_a_silent_router_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_mapping_ways, "ANSWER_S", 0.25)

    async def use(router: Router, port: int) -> None:
        with pytest.raises(PortMappingError, match="did not answer within"):
            await map_port(4242, 0, [NatPmp("127.0.0.1", port)])
        assert 2 <= len(router.asked) <= 3, "asked again, but not without end"

    with_router(lambda data: [], use)


class Scripted:
    """A way whose answers are given; one that is None never comes."""

    how = "upnp"

    def __init__(self, *answers: Mapping | None, there: bool = True) -> None:
        self.answers, self.there = list(answers), there
        self.unmapped: list[Mapping] = []

    async def find(self) -> None:
        if not self.there:
            raise PortMappingError("nobody there")

    async def map(self, port: int, wanted: int) -> Mapping:
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            raise PortMappingError("refused")
        return answer

    async def unmap(self, port: int, mapping: Mapping) -> None:
        self.unmapped.append(mapping)


def mapping(external: str, lifetime_s: float = 60) -> Mapping:
    return Mapping(external=external, how="upnp", lifetime_s=lifetime_s)


def test_the_next_way_is_asked_if_the_first_refuses() -> None:
    refuses, gives = Scripted(), Scripted(mapping("5.6.7.8:9"))
    found, way = asyncio.run(map_port(1, 0, [Scripted(there=False), refuses, gives]))
    assert found.external == "5.6.7.8:9" and way is gives


def test_it_is_renewed_lost_found_again_and_taken_back() -> None:
    told: list[str | None] = []
    first = Scripted(mapping("5.6.7.8:9", 0.05), mapping("5.6.7.8:9", 0.05))
    second = Scripted(mapping("5.6.7.8:10"))
    rounds = iter([[first], [Scripted()], [Scripted()], [second]])

    async def main() -> None:
        mapper = PortMapper(
            1,
            lambda mapping, says: told.append(mapping.external if mapping else None),
            ways=lambda: next(rounds, []),
            retry_s=0.1,
        )
        mapper.start()
        async with asyncio.timeout(5):
            while len(told) < 3:
                await asyncio.sleep(0.01)
        await mapper.close()
        await mapper.close()

    asyncio.run(main())
    assert told == ["5.6.7.8:9", None, "5.6.7.8:10"]
    assert [one.external for one in second.unmapped] == ["5.6.7.8:10"]


def test_a_thread_that_stalls_is_left_behind() -> None:
    async def main() -> None:
        import threading

        held = threading.Event()
        with pytest.raises(PortMappingError, match="longer than"):
            await in_thread(held.wait, 0.05)
        with pytest.raises(PortMappingError, match="no such"):
            await in_thread(lambda: (_ for _ in ()).throw(Exception("no such")), 1)
        held.set()

    asyncio.run(main())
