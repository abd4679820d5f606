"""``decentral peer``: make a run, take part in one, or go on with one.

decentral peer --recipe gpt                     in one terminal: prints the line for the others
decentral peer --join 198.51.100.7:4242#AZ0x…   in any other, on any machine
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from decentral.errors import DecentralError
from decentral.types import short

if TYPE_CHECKING:
    from decentral.peer.runtime import Mesh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--join", action="append", default=[], metavar="WORD",
        help="a join word (HOST:PORT#INVITE) from a member; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", default="gpt",
        help="what to train: a name (gpt) or module:function on this machine (default: gpt)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, help="end the run after so many rounds (said by the first peer)"
    )
    parser.add_argument("--seed", type=int, default=0, help="initial parameters, sample order")
    parser.add_argument(
        "--listen", default="0.0.0.0:0", metavar="HOST:PORT", help="default: any address and port"
    )
    parser.add_argument("--name", help="this peer's name, for people (default: peer-<n>)")
    parser.add_argument("--home", type=Path, help="identity, checkpoints, logs (default: by name)")
    parser.add_argument("--credential", type=Path, metavar="FILE", help="instead of an invite")
    parser.add_argument(
        "--open", action="store_true", help="the run that this peer makes admits anyone"
    )
    parser.add_argument(
        "--on-quorum-loss", choices=("fork", "pause"), default="fork",
        help="when most members are gone: go on as a new lineage, or wait (default: fork)",
    )  # fmt: skip
    parser.add_argument("--quorum-timeout", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument(
        "--max-upload", type=float, default=0.0, metavar="MBIT", help="send no faster (Mbit/s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON event a line on stdout")


def run(args: argparse.Namespace) -> int:
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
                on_quorum_loss=args.on_quorum_loss,
                quorum_timeout_s=args.quorum_timeout,
                max_upload_mbit=args.max_upload,
                on_event=say,
            )
        )
        try:
            _train(mesh, args)
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
    from decentral.recipes import load
    from decentral.recipes.train import run_options, train
    from decentral.run import Run

    recipe = load(args.recipe)
    task = recipe.build(args.seed)
    options = run_options(recipe, task, home=mesh.home.path, rounds=args.rounds, seed=args.seed)
    founder = not args.join
    with Run(mesh, task.model, task.optimizer, task.strategy, options, founder=founder) as run:
        train(task, run)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _name_and_home(args: argparse.Namespace) -> tuple[str, Path]:
    """Explicit beats default. By default a run that is joined gets homes of its own, and a peer
    takes the first one that no running peer uses: the same command goes on where it ended."""
    from decentral.peer.home import default_home, is_locked
    from decentral.peer.joinword import JoinWord

    if args.home is not None:
        return args.name or args.home.name or "peer", args.home
    if args.name is not None:
        return args.name, default_home(args.name)
    stem = "peer"
    if args.join:
        word = JoinWord.parse(args.join[0])
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
            case "joined":
                return f"joined: {e['members']} member(s), round {e['round']}"
            case "link" if e["state"] == "up":
                return f"link to {e['name']} ({short(e['peer'])}): {e['class']}, {e['how']}"
            case "link":
                return f"link to {short(e['peer'])} is down: {e['says']}"
            case "view":
                return f"epoch {e['epoch']}: {e['members']} member(s): {e['reason']}"
            case "round":
                loss = f", loss {e['loss']:.4f}" if e.get("loss") is not None else ""
                return (
                    f"round {e['round']} committed by {e['participants']} in {e['seconds']:.2f} s"
                    f"{loss}, {e['tokens']:,} tokens, state {e['state_hash'][:12]}, "
                    f"sent {e['bytes_sent'] / 2**20:.1f} MiB"
                )
            case "fault":
                return f"! {e['says']}"
            case "left":
                return f"left: {e['says']}"
            case "done":
                loss = f", validation loss {e['val_loss']:.4f}" if "val_loss" in e else ""
                return f"done: round {e['round']}, state {e['state_hash'][:12]}{loss}"
        print(f"unknown event {e['event']!r}", file=sys.stderr)
        return ""
