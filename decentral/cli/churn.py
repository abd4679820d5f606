"""``decentral churn``: a run on this machine under faults, and whether it kept its promises.

decentral churn --peers 24 --seconds 1200 --faults all --rate 1.0 --seed 7 --report out/
decentral churn --recipe my_module:recipe --peers 4 --seconds 120 --faults kill,stop
decentral churn --replay out/schedule.json --report again/     the same faults, edited or not
decentral churn --check out/                                   the audit alone
decentral churn --hostile --seconds 30                         hostile bytes instead of faults
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.churn.audit import Report
    from decentral.churn.harness import Options
    from decentral.churn.schedule import Schedule

PRESETS = ("churn", "pccl", "turnover")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--peers", type=int, default=8, help="peers of the run (default 8)")
    add("--seconds", type=float, default=120.0, help="how long faults come (default 120)")
    add("--faults", default="all", metavar="KINDS", help="all, or kinds with commas between them")
    add("--rate", type=float, default=0.5, help="faults per second, on average (default 0.5)")
    add("--even", action="store_true", help="faults at even distances, not at random ones")
    add("--seed", type=int, help="of the schedule (default: a fresh one, printed)")
    add(
        "--preset", choices=PRESETS, default="churn",
        help="pccl: that project's own stress test, 2 to 10 peers; turnover: newcomers only, "
        "--joins of them",
    )  # fmt: skip
    add("--joins", type=int, default=500, help="newcomers of the turnover (default 500)")
    add("--every-s", type=float, default=0.3, help="turnover: one so often (default 0.3)")
    add(
        "--compute", choices=("recipe", "sleep"),
        help="sleep: inner steps are naps, so that cores do not matter (default without --recipe)",
    )  # fmt: skip
    add("--recipe", help="what the peers train: a name (gpt) or module:function on this machine")
    add("--step-s", type=float, default=0.1, help="sleep: what an inner step takes (default 0.1)")
    add("--sync-every", type=int, default=4, metavar="H", help="sleep: inner steps per round")
    add("--state-kib", type=int, default=64, help="sleep: size of the parameters")
    add(
        "--network", choices=("auto", "loopback", "namespaces"), default="auto",
        help="namespaces: a host for each peer, with faults of the network (Linux, root)",
    )  # fmt: skip
    add("--calm-s", type=float, default=15.0, help="undisturbed seconds before, to compare with")
    add("--gap-limit-s", type=float, default=10.0, help="I3: longest time without a commit")
    add(
        "--keep-going", action="store_true",
        help="go on after a violation, to the end of the schedule (default: end at the first)",
    )  # fmt: skip
    add("--replay", type=Path, metavar="SCHEDULE.json", help="these faults instead of drawn ones")
    add("--report", type=Path, metavar="DIR", help="logs, schedule.json, report.json, report.html")
    add("--check", type=Path, metavar="DIR", help="audit the logs of an earlier run, run nothing")
    add(
        "--hostile", action="store_true",
        help="attack a small run with hostile bytes instead: strangers, men in the middle, an "
        "invited guest, a member",
    )  # fmt: skip
    add("--messages", type=int, default=100_000, help="hostile: mutated ones behind decryption")
    add("--replays", type=int, default=10_000, help="hostile: replayed or stale ones")
    add("--list", action="store_true", help="print the kinds of faults, and the failpoints")
    add("--json", action="store_true", help="the report as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    from decentral.churn.audit import audit
    from decentral.churn.harness import Harness, Options, abilities

    if args.list:
        return _list()
    if args.check is not None:
        return _tell(args, audit(args.check))
    folder = _folder(args)
    if args.hostile:
        return _attack(args, folder)
    compute = args.compute or ("recipe" if args.recipe else "sleep")
    options = Options(
        folder=folder,
        compute=compute,
        recipe=args.recipe or "gpt",
        step_s=args.step_s,
        sync_every=args.sync_every,
        state_kib=args.state_kib,
        calm_s=args.calm_s,
        network=args.network,
        gap_limit_s=args.gap_limit_s,
        stop_at_first=not args.keep_going,
    )
    has = abilities(options)
    schedule = _schedule(args, options, has)
    schedule.save(folder / "schedule.json")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say(
        f"seed {schedule.seed}: {len(schedule.faults)} faults in {schedule.seconds:.0f} s, {folder}"
    )
    harness = Harness(options, schedule, has, say)
    harness.run()
    for kind, times in sorted(harness.skipped.items()):
        say(f"{times} × {kind}: nobody to hit")
    report = audit(folder)
    report.write(folder)
    return _tell(args, report)


def _schedule(args: argparse.Namespace, options: Options, has: set[str]) -> Schedule:
    from decentral.churn import schedule as schedules
    from decentral.churn.kinds import possible

    if args.replay is not None:
        return schedules.Schedule.load(args.replay)
    if args.peers < 2 or args.seconds <= 0 or args.rate <= 0:
        raise ConfigError("--peers is at least 2, --seconds and --rate are positive")
    seed = args.seed if args.seed is not None else secrets.randbelow(2**31)
    if args.preset == "pccl":
        return schedules.like_pccl(seed=seed, seconds=args.seconds)
    if args.preset == "turnover":
        return schedules.turnover(
            seed=seed, peers=args.peers, count=args.joins, every_s=args.every_s
        )
    asked = schedules.check_kinds(args.faults)
    kinds = possible(asked, has)
    left_out = [kind for kind in asked if kind not in kinds]
    if left_out:
        print(f"not possible here (see --list): {', '.join(left_out)}", file=sys.stderr)
    if not kinds:
        raise ConfigError("none of these faults is possible on this system", phase="schedule")
    return schedules.plan(
        seed=seed,
        peers=args.peers,
        seconds=args.seconds,
        rate=args.rate,
        kinds=kinds,
        even=args.even,
    )


def _folder(args: argparse.Namespace) -> Path:
    folder: Path = args.report or Path("churn-report")
    if folder.exists() and not (folder / "timeline.jsonl").exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} has other things in it: give another --report")
    shutil.rmtree(folder, ignore_errors=True)  # an earlier report of ours
    folder.mkdir(parents=True)
    return folder.resolve()


def _tell(args: argparse.Namespace, report: Report) -> int:
    print(json.dumps(report.as_json()) if args.json else report.verdict)
    return 0 if report.held else 1


def _attack(args: argparse.Namespace, folder: Path) -> int:
    from decentral.churn.hostile import behind, siege

    seed = args.seed if args.seed is not None else secrets.randbelow(2**31)
    print(f"{folder}: seed {seed}", file=sys.stderr, flush=True)
    report: dict[str, Any] = {"hostile": True, "seed": seed}
    report["behind_decryption"] = behind.run(
        seed,
        messages=round(0.6 * args.messages),
        transfers=round(0.38 * args.messages),
        admissions=round(0.02 * args.messages),
        replays=args.replays,
    )
    report["on_sockets"] = siege.run(folder, args.seconds, seed)
    parts = (report["behind_decryption"], report["on_sockets"])
    report["notes"] = [note for part in parts for note in part.pop("notes")][:50]
    report["held"] = not report["notes"]
    text = json.dumps(report)
    (folder / "hostile.json").write_text(text + "\n")
    said = "; ".join(report["notes"]) or "nothing was accepted, and nobody fell"
    print(text if args.json else f"{'held' if report['held'] else 'BROKEN'}: {said}")
    return 0 if report["held"] else 1


def _list() -> int:
    from decentral.churn.kinds import KINDS
    from decentral.failpoints import REGISTRY

    for name, kind in KINDS.items():
        needs = f" (needs {kind.needs})" if kind.needs else ""
        print(f"{name:15} {kind.says}{needs}")
    print(
        "\nfailpoints (decentral bench failpoints; DECENTRAL_FAILPOINTS=NAME=crash|error|stall:S):"
    )
    for point in REGISTRY.values():
        print(f"{point.name:20} {point.says}")
    return 0
