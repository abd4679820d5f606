"""``decentral peer``: make a run, take part in one, or go on with one.

decentral peer --recipe gpt                     in one terminal: prints the line for the others
decentral peer --join 198.51.100.7:4242#AZ0x…   in any other, on any machine
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from decentral.errors import ConfigError, DecentralError
from decentral.types import short

if TYPE_CHECKING:
    from decentral.peer.runtime import Mesh
    from decentral.recipes import ProgramRecipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--join", action="append", default=[], metavar="WORD",
        help="a join word (HOST:PORT#INVITE) from a member; may be given several times. `lan`: "
        "whoever of the run is found on this network",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", default="gpt",
        help="what to train: a name (gpt) or module:function on this machine (default: gpt)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, help="end the run after so many rounds (said by the first peer)"
    )
    parser.add_argument(
        "--strategy", metavar="WORD",
        help="instead of the recipe's: NAME[,OPTION=VALUE …], e.g. async-diloco,outer_lr=0.5 (the "
        "same on all peers)",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, help="peak learning rate, instead of the recipe's")
    parser.add_argument(
        "--members", type=int, default=1, metavar="N",
        help="make the first step once N peers are members (default: at once)",
    )  # fmt: skip
    parser.add_argument(
        "--serve", action="store_true",
        help="when everything is trained, stay and answer others (recipes that are programs)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="initial parameters, sample order")
    parser.add_argument(
        "--listen", default="[::]:0", metavar="HOST:PORT", help="default: any address and port"
    )
    parser.add_argument("--name", help="this peer's name, for people (default: peer-<n>)")
    parser.add_argument("--home", type=Path, help="identity, checkpoints, logs (default: by name)")
    parser.add_argument("--credential", type=Path, metavar="FILE", help="instead of an invite")
    parser.add_argument(
        "--open", action="store_true", help="the run that this peer makes admits anyone"
    )
    parser.add_argument(
        "--role", choices=("train", "relay", "observe"),
        help="relay: carry others' links; observe: follow the run; neither trains (default: what "
        "the invite or credential is for)",
    )  # fmt: skip
    parser.add_argument(
        "--state", type=Path, metavar="FILE",
        help="with --role observe and --recipe: fetch the run's current state, write it, end",
    )  # fmt: skip
    parser.add_argument(
        "--on-quorum-loss", choices=("fork", "pause"), default="fork",
        help="when most members are gone: go on as a new lineage, or wait (default: fork)",
    )  # fmt: skip
    parser.add_argument("--quorum-timeout", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument(
        "--max-upload", type=float, default=0.0, metavar="MBIT", help="send no faster (Mbit/s)"
    )
    parser.add_argument(
        "--relay", choices=("on", "off", "auto"), default="auto",
        help="carry (encrypted) bytes between peers that cannot connect to each other; auto: if "
             "strangers can dial this peer",
    )  # fmt: skip
    parser.add_argument(
        "--max-relay", type=float, default=0.0, metavar="MBIT",
        help="relay no faster than this in all (Mbit/s)",
    )  # fmt: skip
    parser.add_argument(
        "--full-mesh-up-to", type=int, default=32, metavar="N",
        help="links to everybody up to so many peers; in a larger run to a few, and to others when "
             "data goes to them (default: 32; the same on all peers)",
    )  # fmt: skip
    parser.add_argument(
        "--lan", choices=("on", "off"), default="on",
        help="announce this peer on the local network, and find others there (default: on, for a "
        "listener on any address)",
    )  # fmt: skip
    parser.add_argument(
        "--port-mapping", choices=("on", "off"), default="on",
        help="ask the router to let others in (default: on, for a listener on any address)",
    )  # fmt: skip
    parser.add_argument(
        "--witness", type=int, default=0, metavar="N",
        help="keep N elements of what is contributed and committed in events.jsonl, for an audit",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON event a line on stdout")


def run(args: argparse.Namespace) -> int:
    return take_part(args, _train)


def take_part(args: argparse.Namespace, train: Callable[[Mesh, argparse.Namespace], None]) -> int:
    """A process's whole life as a peer; `train` is what it does once it listens."""
    name, home = _name_and_home(args)
    say = _say_json if args.json else _Sayer()

    from decentral.peer.runtime import Mesh, MeshConfig

    signal.signal(signal.SIGTERM, _terminated)
    try:
        mesh = Mesh(
            MeshConfig(
                home=home,
                name=name,
                listen=args.listen,
                join=tuple(args.join),
                credential=args.credential,
                open_run=args.open,
                role=args.role,
                on_quorum_loss=args.on_quorum_loss,
                quorum_timeout_s=args.quorum_timeout,
                max_upload_mbit=args.max_upload,
                relay=args.relay,
                max_relay_mbit=args.max_relay,
                full_mesh_up_to=args.full_mesh_up_to,
                lan_discovery=args.lan == "on",
                port_mapping=args.port_mapping == "on",
                on_event=say,
            )
        )
        try:
            (train if mesh.role == "train" else _watch)(mesh, args)
        finally:
            mesh.close()
    except DecentralError as error:
        if args.json:
            fault = {"event": "fault", "kind": type(error).__name__, "peer": error.peer}
            _say_json({**fault, "phase": error.phase, "says": error.says})
        raise
    except SystemExit as left:  # SIGTERM, after a clean leave
        return int(left.code or 0)
    return 0


def _train(mesh: Mesh, args: argparse.Namespace) -> None:
    """Imports torch, which takes a while: by now the peer listens and has said so."""
    from decentral.recipes import ProgramRecipe, load

    recipe = load(args.recipe)
    if isinstance(recipe, ProgramRecipe):
        _work(mesh, recipe, args)
        return
    if args.serve:
        raise ConfigError(f"recipe {recipe.name} has nothing to serve when it is done")
    from decentral.recipes.train import adjusted, run_options, train
    from decentral.run import Run

    task = adjusted(recipe.build(args.seed), strategy=args.strategy, lr=args.lr)
    options = run_options(
        recipe,
        task,
        home=mesh.home.path,
        rounds=args.rounds,
        seed=args.seed,
        witness=args.witness,
    )
    founder = not args.join
    with Run(mesh, task.model, task.optimizer, task.strategy, options, founder=founder) as run:
        train(task, run, members=args.members)


def _work(mesh: Mesh, recipe: ProgramRecipe, args: argparse.Namespace) -> None:
    """A program of cells, which has a length and strategies of its own."""
    from decentral.dataflow.worker import Worker
    from decentral.serving.offer import offer

    for option in ("rounds", "strategy", "lr"):
        if getattr(args, option) is not None:
            raise ConfigError(f"recipe {recipe.name} is a program: --{option} does not apply")
    program = recipe.build(args.seed)
    worker = Worker(
        mesh,
        program,
        founder=not args.join,
        home=mesh.home.path,
        members=args.members,
    )
    offer(mesh, worker, program)
    worker.run(serve=args.serve)


def _watch(mesh: Mesh, args: argparse.Namespace) -> None:
    """A relay's or an observer's life: until it is stopped, or has the state that it came for."""
    from decentral.peer.orders import MeshFailed, Order, StateArrived

    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    if args.state is None:
        mesh.watch(orders.put)
    else:
        from decentral.recipes import load_training
        from decentral.recipes.train import holdings

        task = load_training(args.recipe).build(args.seed)
        mesh.watch(orders.put, holdings=holdings(task))
    try:
        while True:
            match orders.get():
                case MeshFailed(error):
                    raise error
                case StateArrived(state):
                    from decentral.export import export

                    path = export([state], args.state)
                    mesh.emit(
                        {
                            "event": "done",
                            "reason": f"the state is in {path}",
                            "round": state.round,
                            "state_hash": state.root.hex(),
                        }
                    )
                    return
    except (SystemExit, KeyboardInterrupt):
        mesh.emit({"event": "left", "peer": mesh.me, "says": "it only watched"})
        raise


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _name_and_home(args: argparse.Namespace) -> tuple[str, Path]:
    """Explicit beats default. By default a run that is joined gets homes of its own, and a peer
    takes the first one that no running peer uses: the same command goes on where it ended."""
    from decentral.peer.credential import load_chain, run_label
    from decentral.peer.home import default_home, is_locked
    from decentral.peer.joinword import JoinWord

    if args.home is not None:
        return args.name or args.home.name or "peer", args.home
    if args.name is not None:
        return args.name, default_home(args.name)
    stem = "peer"
    words = [word for word in args.join if word != "lan"]
    if args.join and not words:
        stem = f"run-{run_label(load_chain(args.credential)[0].run)}" if args.credential else "lan"
    elif words:
        word = JoinWord.parse(words[0])
        run = word.invite.run.hex()[:8] if word.invite else word.addresses[0].replace(":", "-")
        stem = f"run-{run}"
    number = 1
    while is_locked(default_home(f"{stem}-{number}")):
        number += 1
    return f"peer-{number}", default_home(f"{stem}-{number}")


def _say_json(event: Mapping[str, Any]) -> None:
    print(json.dumps(event), flush=True)


class _Sayer:
    """Events as lines that a person can read."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = self._line(event)
        if line:
            print(f"[{event['t']:8.2f} s] {line}", flush=True)

    def _line(self, e: Mapping[str, Any]) -> str:
        match e["event"]:
            case "listening":
                return (
                    f"{e['name']} ({short(e['peer'])}) listens on port {e['port']}. Others join "
                    f"with:\n\n    decentral peer --join {e['join']}\n"
                    if e.get("join")
                    else f"{e['name']} ({short(e['peer'])}) listens on port {e['port']}"
                )
            case "watching":
                doing = "relays for" if e["role"] == "relay" else "observes"
                return f"{doing} a run of {e['members']} member(s), round {e['round']}"
            case "round" if e["participants"] is None:
                return f"round {e['round']}{_of(e)} committed, state {e['state_hash'][:12]}"
            case "joined":
                return f"joined: {e['members']} member(s), round {e['round']}"
            case "link" if e["state"] == "up":
                return f"link to {e['name']} ({short(e['peer'])}): {e['class']}, {e['how']}"
            case "link":
                return f"link to {short(e['peer'])} is down: {e['says']}"
            case "mapping":
                return str(e["says"])
            case "view":
                return f"epoch {e['epoch']}: {e['members']} member(s): {e['reason']}"
            case "round":
                loss = f", loss {e['loss']:.4f}" if e.get("loss") is not None else ""
                return (
                    f"round {e['round']}{_of(e)} committed by {e['participants']} in "
                    f"{e['seconds']:.2f} s"
                    f"{loss}, {e['tokens']:,} tokens, state {e['state_hash'][:12]}, "
                    f"sent {e['bytes_sent'] / 2**20:.1f} MiB"
                )
            case "fault":
                return f"! {e['says']}"
            case "left":
                return f"left: {e['says']}"
            case "done":
                loss = f", validation loss {e['val_loss']:.4f}" if "val_loss" in e else ""
                return f"done: round {e['round']}{_of(e)}, state {e['state_hash'][:12]}{loss}"
        print(f"unknown event {e['event']!r}", file=sys.stderr)
        return ""


def _of(event: Mapping[str, Any]) -> str:
    """Which module, in a run of several."""
    return f" of {event['tag']}" if "tag" in event else ""
