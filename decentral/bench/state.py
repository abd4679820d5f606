"""A state to a joiner from many members at once, whatever happens meanwhile.

decentral bench state --members 4 --upload-mbit 200 --size-mib 1024 --json
decentral bench state --cases all --net loopback --upload-mbit 0      what a fetch costs in CPU

    one       from one member only
    all       from all of them
    rounds    from all, while they go on reducing: their rounds with and without the transfer
    corrupt   one of them sends wrong bytes
    kill      one of them is killed in the middle

Where network namespaces can be had each member is a host whose line carries `--upload-mbit`;
on loopback the product's own upload cap does it.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import time
from typing import Any

from decentral.bench import machine
from decentral.bench.lab import why_not
from decentral.bench.net import Net, open_net
from decentral.bench.workers import Workers, soon

SAYS = "a state to a joiner from one member and from all; a kill, a liar, and rounds meanwhile"
CASES = ("one", "all", "rounds", "corrupt", "kill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--upload-mbit", type=float, default=200, help="of each member; 0: no cap")
    parser.add_argument("--cases", default=",".join(CASES), help="some of " + ", ".join(CASES))
    parser.add_argument("--net", choices=("loopback", "shaped"), help="default: shaped if it can")
    parser.add_argument("--reduce-mib", type=float, default=16, help="of the rounds meanwhile")
    parser.add_argument("--pause-s", type=float, default=1.0, help="between rounds")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    kind = args.net or ("loopback" if why_not() or not args.upload_mbit else "shaped")
    shaped = kind == "shaped"
    rates = (args.upload_mbit,) * args.members + (0.0,) if shaped else ()
    net = Net(kind=kind, rates_mbit=rates)
    size_bytes = args.size_mib << 20
    with open_net(net, args.members + 1) as site:
        cap = 0 if shaped else args.upload_mbit
        how = ["--size-bytes", str(size_bytes), "--upload-mbit", str(cap)]
        workers = Workers("decentral.bench.state_worker", site.places, how)
        try:
            scene = Scene(workers, args)
            results = [getattr(scene, case)() for case in CASES if case in args.cases.split(",")]
        finally:
            workers.close()
    report = {
        "bench": "state",
        "machine": machine.about(),
        "net": {**net.report(args.members + 1), "upload_mbit": args.upload_mbit},
        "size_bytes": size_bytes,
        "results": results,
    }
    return {**report, **_verdict({result["case"]: result for result in results}, args)}


class Scene:
    """Members that hold the state, and one joiner: the last rank."""

    def __init__(self, workers: Workers, args: argparse.Namespace) -> None:
        self._workers, self._args = workers, args
        self._members = list(range(args.members))
        self._joiner = args.members
        self._round = 0
        self._all_s = 0.0
        for rank in range(args.members + 1):
            workers.tell([rank], do="connect", roster=workers.addresses, dial=list(range(rank)))
        workers.hear()
        self._root = workers.ask(self._members, do="hold")[0]["root"]

    def one(self) -> dict[str, Any]:
        return self._fetch("one", self._members[:1])

    def all(self) -> dict[str, Any]:
        result = self._fetch("all", self._members)
        self._all_s = result["seconds"]
        return result

    def corrupt(self) -> dict[str, Any]:
        liar = self._members[1]
        self._workers.ask([liar], do="hold", corrupt=True)
        result = self._fetch("corrupt", self._members)
        self._workers.ask([liar], do="hold")
        return {**result, "liar": liar}

    def kill(self) -> dict[str, Any]:
        """`ideal_seconds`: the rest at full speed from the members that remain."""
        members = len(self._members)
        whole_s = self._all_s or (self._args.size_mib << 20) * 8e-6 / (
            members * (self._args.upload_mbit or 10_000)
        )
        start_at = self._begin(self._members)
        time.sleep(max(0.0, start_at + whole_s / 2 - time.monotonic()))
        self._workers.all[self._members[-1]].signal(signal.SIGKILL)
        result = self._end("kill", self._members)
        ideal_s = whole_s / 2 + whole_s / 2 * members / (members - 1)
        return {**result, "ideal_seconds": ideal_s}

    def rounds(self) -> dict[str, Any]:
        """Rounds alone, then with the transfer."""
        self._workers.ask(self._members, do="prepare", count=int(self._args.reduce_mib * 2**18))
        self._reduce()
        alone = [self._reduce() for _ in range(5)]
        self._begin(self._members)
        joiner = self._workers.all[self._joiner]
        during: list[float] = []
        while not joiner.ready():
            during.append(self._reduce())
        if len(during) > 1:
            during.pop()  # the transfer may have ended within it
        result = self._end("rounds", self._members)
        return {
            **result,
            "round_seconds_alone": round(statistics.median(alone), 4),
            "round_seconds_meanwhile": round(statistics.median(during), 4),
            "rounds_meanwhile": len(during),
            "seconds_list": [round(one, 4) for one in during],
        }

    def _reduce(self) -> float:
        self._round += 1
        time.sleep(self._args.pause_s)
        at = soon(len(self._members))
        answers = self._workers.ask(self._members, do="reduce", round=self._round, start_at=at)
        return max(float(answer["seconds"]) for answer in answers)

    def _fetch(self, case: str, holders: list[int]) -> dict[str, Any]:
        self._begin(holders)
        return self._end(case, holders)

    def _begin(self, holders: list[int]) -> float:
        at = soon(1)
        self._workers.tell(
            [self._joiner], do="fetch", root=self._root, holders=holders, start_at=at
        )
        return at

    def _end(self, case: str, holders: list[int]) -> dict[str, Any]:
        answer = self._workers.hear([self._joiner])[0]
        size_bytes = self._args.size_mib << 20
        return {
            "case": case,
            "sources": len(holders),
            "seconds": round(answer["seconds"], 3),
            "mbit_s": round(size_bytes * 8e-6 / answer["seconds"], 1),
            "given_mib": [round(given / 2**20, 1) for given in answer["given_bytes"]],
            "cpu_seconds": round(answer["cpu_seconds"], 3),
            "verified": answer["verified"],
            "faults": answer["faults"],
        }


def _verdict(of: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Ratios, and whether what the benchmark is for was the case."""
    ratios, held = {}, all(result["verified"] for result in of.values())
    if "one" in of and "all" in of:
        ratios["all/one"] = of["one"]["seconds"] / of["all"]["seconds"]
        held &= not args.upload_mbit or ratios["all/one"] >= 0.875 * args.members
    if "kill" in of:
        ratios["kill/ideal"] = of["kill"]["seconds"] / of["kill"]["ideal_seconds"]
        held &= ratios["kill/ideal"] < 1.1
    if "rounds" in of:
        case = of["rounds"]
        ratios["round meanwhile/alone"] = (
            case["round_seconds_meanwhile"] / case["round_seconds_alone"]
        )
        held &= ratios["round meanwhile/alone"] < 1.1
    if "corrupt" in of:
        case = of["corrupt"]
        named = [fault["rank"] for fault in case["faults"]]
        held &= named == [case["liar"]]
    return {"ratios": {name: round(ratio, 4) for name, ratio in ratios.items()}, "held": held}
