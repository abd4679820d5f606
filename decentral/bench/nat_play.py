"""One scenario of the NAT matrix, played by three real peers, and what they said of it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from decentral.bench.fleet import until
from decentral.bench.nat_lab import NatHost, NatLab
from decentral.bench.nat_peer import MOVE_BYTES, PROGRAM, ask_to_move
from decentral.bench.nat_scenarios import DIRECT, ENTRY_S, LINK_S, RELAYED_S, Scenario
from decentral.cli.fork_server import Forked, ForkServer
from decentral.cli.processes import PeerProcess
from decentral.errors import DecentralError

START_S = 20.0
MOVE_S, MOVES = 30.0, 3
SETTLE_S = 1.0
"""After the link is as good as asked for: may both be in the view, so that nothing changes while
data move."""
ROUND_S, ROUND_TRIPS = 0.2, 10
"""There is always a boundary near; but a newcomer's fetch takes some round trips, and must not be
outrun."""
TIMES = ("entry_s", "link_s", "direct_s", "relayed_s")
KNOWN = {"event", "t", "peer", "name", "state", "class", "how", "relay", "says", "seen_at"}


class Stage:
    """Starts peers on hosts of a lab; one for all scenarios, from any thread."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server, self._folder, self._lock = server, folder, threading.Lock()

    def start(self, host: NatHost, name: str, *args: str) -> PeerProcess:
        def launch(words: Any, env: Any, stderr: IO[bytes]) -> Forked:
            with self._lock:
                return self._server.launch(words, env, stderr, host.netns)

        return PeerProcess(
            name.rpartition("/")[2], self._folder / name, list(args), listen=host.listen,
            program=PROGRAM, launch=launch,
        )  # fmt: skip


def play(lab: NatLab, stage: Stage, scenario: Scenario, patience_s: float) -> dict[str, Any]:
    """One row of the table. A row that did not hold says why; nothing but the lab's own failure
    is raised."""
    for site in scenario.sites:
        if lab.sites[site].router is not None:
            lab.forget(site)
    act = _Act(lab, stage, scenario, patience_s)
    try:
        act.run()
    except DecentralError as error:
        act.wrong.append(error.says)
    finally:
        act.close()
    return act.row()


class _Act:
    def __init__(self, lab: NatLab, stage: Stage, scenario: Scenario, patience_s: float) -> None:
        self._lab, self._stage, self._scenario = lab, stage, scenario
        self._patience_s = patience_s
        self._peers: list[PeerProcess] = []
        self._pair: tuple[PeerProcess, PeerProcess] | None = None
        self._link: dict[str, Any] = {}
        self._moved: dict[str, Any] = {"moved_mib": 0, "verified": False, "mib_s": None}
        self.wrong: list[str] = []

    def run(self) -> None:
        scenario, lab = self._scenario, self._lab
        entry = self._start(lab.host(scenario.entry), "entry")
        word = str(entry.wait_for("listening", timeout_s=START_S)["join"])
        # One observer gives an address, two classify: a run has more than one public peer.
        seer = self._start(lab.host(scenario.observer), "observer", "--join", word)
        seer.wait_for("joined", timeout_s=START_S)
        a = self._start(lab.host(*scenario.a), "a", "--join", word)
        b = self._start(lab.host(*scenario.b), "b", "--join", word)
        self._pair = a, b
        for peer in (a, b):
            peer.wait_for("listening", timeout_s=START_S)
        for peer in (a, b):  # a peer whose own way in is shut tells more than a missing link
            peer.wait_for("link", timeout_s=START_S, where=lambda e: e["state"] == "up")
        _within(self._patience_s, lambda: self._class() in scenario.bar, (a, b))
        if self._class() == "failed":
            self.wrong.append(self._why())
            return
        _within(SETTLE_S, lambda: all(peer.last("joined") for peer in (a, b)), (a, b))
        self._move(a, b)
        if self._class() not in scenario.bar:
            good = "/".join(sorted(scenario.bar))
            self.wrong.append(f"the link is {self._class()}, not {good}: {self._why()}")

    def _start(self, host: NatHost, name: str, *args: str) -> PeerProcess:
        folder = "".join(c if c.isalnum() else "-" for c in self._scenario.name)
        round_s = str(ROUND_S + ROUND_TRIPS * self._scenario.rtt_ms / 1e3)
        peer = self._stage.start(host, f"{folder}/{name}", "--round-s", round_s, *args)
        self._peers.append(peer)
        return peer

    def _move(self, a: PeerProcess, b: PeerProcess) -> None:
        """Again if the link was replaced by a better one meanwhile, as the data are to cross that.
        As in a round, what a change of links breaks off is begun anew."""
        carried, failure = 0, ""
        for number in range(1, MOVES + 1):
            for peer, other in ((a, b), (b, a)):
                ask_to_move(peer.home, other.peer_id)
            self._wait_for_moves(number)
            if failure := _failed_move(a, number) or _failed_move(b, number):
                continue
            links = [_link(peer, other.peer_id) for peer, other in ((a, b), (b, a))]
            self._link = links[0]
            carried = min(int(link.get("bytes_received", 0)) for link in links)
            if carried >= MOVE_BYTES:
                break
        if failure:
            self.wrong.append(f"the data did not get across: {failure}")
            return
        first, second = a.last("moved"), b.last("moved")
        assert first is not None and second is not None
        verified = (first["sent"], first["received"]) == (second["received"], second["sent"])
        self._moved = {
            "moved_mib": MOVE_BYTES >> 20,
            "verified": verified,
            "mib_s": round(MOVE_BYTES / 2**20 / max(first["seconds"], second["seconds"]), 1),
        }
        if not verified:
            self.wrong.append("what arrived is not what was sent")
        if carried < MOVE_BYTES:
            self.wrong.append(f"the link between the two carried only {carried} bytes")

    def _wait_for_moves(self, count: int) -> None:
        until(
            lambda: all(
                len(peer.events("moved")) + len(_failed_moves(peer)) >= count
                for peer in self._pair or ()
            ),
            timeout_s=MOVE_S,
            says="16 MiB each way",
        )

    # --------------------------------------------------------------------- what they said

    def _events(self, number: int) -> list[dict[str, Any]]:
        """What one of the two said of its link to the other."""
        if self._pair is None:
            return []
        peer, other = self._pair[number], self._pair[1 - number]
        return [e for e in peer.events("link") if other.peer_id and e["peer"] == other.peer_id]

    def _class(self) -> str:
        """Of the link that both say they have; the worse one, if they disagree."""
        order = ("failed", "relayed", "punched", "mapped", "direct")
        return min((self._class_at(number) for number in (0, 1)), key=order.index)

    def _class_at(self, number: int) -> str:
        said = self._events(number)
        if not any(e["state"] == "up" for e in said):
            return "failed"
        if said[-1]["state"] == "up":
            return str(said[-1]["class"])
        # Its last word is of a link that went: there may be another one, which came before.
        assert self._pair is not None
        return str(_link(self._pair[number], self._pair[1 - number].peer_id).get("class", "failed"))

    def _times(self) -> dict[str, float | None]:
        """As the peers' own logs have them: from when a link was wanted (`entry_s`: from listening,
        which is when a newcomer dials) to when it was there, for the slower of the two.
        `relayed_s` and `direct_s`: of the first link of that kind."""
        took: dict[str, float | None] = dict.fromkeys(TIMES)
        entered = []
        for peer in self._pair or ():
            listening = peer.last("listening")
            first = next((e for e in peer.events("link") if e["state"] == "up"), None)
            if listening is not None and first is not None:
                entered.append(float(first["t"]) - float(listening["t"]))
        if len(entered) == 2:
            took["entry_s"] = round(max(entered), 3)
        took["link_s"] = self._took(frozenset({"direct", "mapped", "punched", "relayed"}))
        took["direct_s"] = self._took(DIRECT)
        took["relayed_s"] = self._took(frozenset({"relayed"}))
        return took

    def _took(self, classes: frozenset[str]) -> float | None:
        """The longer of the two ends' times; one that was not looking itself has none."""
        found = [
            float(e["seconds"])
            for number in (0, 1)
            for e in self._events(number)
            if e["state"] == "up" and e["class"] in classes and e.get("seconds") is not None
        ]
        return max(found) if found else None

    def _why(self) -> str:
        """The rungs that failed and why, in the peers' own words."""
        said = []
        for number, name in ((0, "a"), (1, "b")):
            for event in self._events(number):
                if event["state"] != "up" or event.get("class") == "failed":
                    said.append(f"{name}: {event.get('how') or event.get('says')}")
        if self._pair is not None and not said:
            for peer in self._pair:
                link = _link(peer, self._other(peer).peer_id)
                if link.get("class") == "failed":
                    said.append(f"{peer.name}: {link.get('how')}")
                elif fault := peer.last("fault"):
                    said.append(f"{peer.name}: {fault['says']}")
        if not said:
            said = self._tried()
        return "; ".join(dict.fromkeys(said)) or "neither says anything of a link to the other"

    def _tried(self) -> list[str]:
        """What they have set out to do, without a word of how it ended."""
        return [
            f"{peer.name} tried {e['tries']} ({e['how']}, {e['address']})"
            for peer in self._pair or ()
            for e in _logged(peer, "reach")
            if e.get("peer") == self._other(peer).peer_id
        ]

    def _other(self, peer: PeerProcess) -> PeerProcess:
        assert self._pair is not None
        return self._pair[self._pair[0] is peer]

    def row(self) -> dict[str, Any]:
        scenario = self._scenario
        link_class = self._final_class
        steps = [
            {"peer": name, "t": e["t"], **{k: e.get(k) for k in ("state", "class", "how", "says")
                                           if e.get(k) is not None}}
            for number, name in ((0, "a"), (1, "b"))
            for e in self._events(number)
        ]  # fmt: skip
        extras = {
            f"{name}.{key}": value
            for number, name in ((0, "a"), (1, "b"))
            for e in self._events(number)
            for key, value in e.items()
            if key not in KNOWN and isinstance(value, int | float)
        }
        times = self._times()
        limits = {"entry_s": ENTRY_S[scenario.rtt_ms], "link_s": LINK_S, "relayed_s": RELAYED_S}
        late = [
            f"{name} is {took}, not {limit}"
            for name, limit in limits.items()
            if (took := times[name]) is not None and took > limit
        ]
        return {
            "scenario": scenario.name,
            "group": scenario.group,
            "rtt_ms": scenario.rtt_ms,
            "class": link_class,
            "how": self._link.get("how", ""),
            "relay": self._link.get("relay"),
            "bar": sorted(scenario.bar),
            "held": not self.wrong,
            **times,
            "late": late,
            **self._moved,
            "why": "; ".join(self.wrong),
            "said": extras,
            "steps": steps,
        }

    def close(self) -> None:
        self._final_class = self._class()
        for peer in self._peers:
            if bug := _bug(peer):
                self.wrong.append(f"{peer.name} has a bug: {bug}")
        for peer in self._peers:
            peer.send(signal.SIGKILL)
        for peer in self._peers:
            peer.close()


def _within(patience_s: float, holds: Callable[[], Any], peers: tuple[PeerProcess, ...]) -> bool:
    """Whether it came to hold in time; DecentralError if a peer has ended."""
    deadline = time.monotonic() + patience_s
    while not holds():
        for peer in peers:
            if peer.exit_status() is not None:
                raise DecentralError(f"{peer.name} ended: {peer.last_words()}", phase="wait")
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _bug(peer: PeerProcess) -> str:
    """What an exception that nobody expected said; it must not look like a network's fault."""
    printed = peer.stderr()
    if "Traceback" not in printed:
        return ""
    raised = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", printed, re.MULTILINE)
    return str(raised[-1]) if raised else "an exception, see its stderr.log"


def _logged(peer: PeerProcess, kind: str) -> list[dict[str, Any]]:
    """Records that are in the log only; the last line may be on its way to the disk."""
    found = []
    for line in (peer.home / "events.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record.get("event") == kind:
                found.append(record)
    return found


def _failed_moves(peer: PeerProcess) -> list[dict[str, Any]]:
    return [e for e in peer.events("fault") if e["kind"] == "move"]


def _failed_move(peer: PeerProcess, number: int) -> str:
    return next((e["says"] for e in _failed_moves(peer) if e["number"] == number), "")


def _link(peer: PeerProcess, other: str) -> dict[str, Any]:
    """As `decentral status --json` has it; empty if the peer has ended."""
    if peer.exit_status() is not None:
        return {}
    return next((link for link in peer.status()["links"] if link["peer"] == other), {})
