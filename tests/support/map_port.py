"""Keep a port mapped until stdin ends, for tests that run it on a host of their own.

python map_port.py PORT [WAY …] [--renew-s S]     one JSON object a line, at each change
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import threading
import time

from decentral.peer.runtime.port_mapping import PortMapper
from decentral.peer.runtime.port_mapping_ways import Mapping, NatPmp, Pcp, Upnp

WAYS = {"pcp": Pcp, "nat-pmp": NatPmp, "upnp": Upnp}


async def main(args: argparse.Namespace) -> None:
    began = time.monotonic()

    def told(mapping: Mapping | None, says: str) -> None:
        event = {"says": says, "seconds": round(time.monotonic() - began, 3)}
        if mapping is not None:
            event |= {
                "external": mapping.external,
                "how": mapping.how,
                "lifetime_s": mapping.lifetime_s,
                "double_nat": mapping.double_nat,
            }
        print(json.dumps(event), flush=True)

    ways = [WAYS[name] for name in args.ways] or list(WAYS.values())
    mapper = PortMapper(
        args.port, told, ways=lambda: [way() for way in ways], renew_s=args.renew_s, retry_s=0.5
    )
    mapper.start()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    await ended.wait()
    await mapper.close()
    print(json.dumps({"closed": True}), flush=True)


def greet(port: int) -> None:
    """Say hello to whoever connects."""
    with socket.create_server(("0.0.0.0", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"hello")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("ways", nargs="*", choices=[[], *WAYS])
    parser.add_argument("--renew-s", type=float, default=120.0)
    args = parser.parse_args()
    threading.Thread(target=greet, args=(args.port,), daemon=True).start()
    import uvloop

    uvloop.run(main(args))
