"""``decentral simulate``: the peers' protocol, unmodified, on a simulated network and clock.

decentral simulate --peers 32 --seeds 10                   the protocol, under faults
decentral simulate collectives --peers 2..4096 --plot out.png
                                                           schedules of an all-reduce, and times
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=32)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, help="run seeds 0 … K−1 (default 10)")
    which.add_argument("--seed", type=int, help="run this one seed")
    add = parser.add_argument
    add("--fresh", action="store_true", help="seeds that nobody has tried (printed, to replay)")
    add("--jobs", type=int, help="seeds at a time, each in a process (default: one per core)")
    add("--simulated-s", type=float, default=600.0, help="length of each run (default 600)")
    add("--for", type=float, metavar="SECONDS", dest="for_s", help="as many seeds as fit")
    add("--scenario", default="everything", help="which faults (default: all)")
    add("--json", action="store_true", help="one JSON object per seed")
    add("--trace", metavar="FILE.html", help="a page that shows what happened (with --seed)")
    kinds = parser.add_subparsers(dest="simulation", metavar="SIMULATION")
    collectives = kinds.add_parser(
        "collectives",
        help="how long an all-reduce takes on drawn networks, schedule by schedule",
        description="Plan an all-reduce on networks drawn from a table of links, estimate each "
        "schedule's time, choose one, and execute the plans chunk by chunk up to 128 peers.",
    )
    add = collectives.add_argument
    add("--peers", default="2..4096", help="2,16,100 or 2..4096 (doublings; the default)")
    add("--size-kib", default="8,65536", help="fp32 buffers of this size (default 8,65536)")
    add("--table", default="builtin", help="a JSON file with link classes (default: builtin)")
    add("--seed", type=int, default=0, help="of the drawn networks")
    add("--plot", metavar="FILE.png", help="time against peers (needs decentral[plot])")
    add("--json", action="store_true", help="one JSON object per size and number of peers")
    crowd = kinds.add_parser(
        "crowd",
        help="a thousand peers: leaders die, the network tears in three, hundreds join",
        description="One run with 5 % loss in which the first peers of a formed view die, three "
        "parts lose each other, and newcomers arrive while all that heals.",
    )
    add = crowd.add_argument
    add("--peers", type=int, default=1000)
    add("--joiners", type=int, default=200)
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="one JSON object")
    detection = kinds.add_parser(
        "detection",
        help="how soon deaths are known, and how seldom the living are called dead",
        description="Membership alone, with 5 % loss: silent deaths; hours without any; and peers "
        "that stall for 2 s at a time, with Lifeguard and without.",
    )
    add = detection.add_argument
    add("--peers", type=int, default=1000)
    add("--peer-hours", type=float, default=100.0, help="without deaths, for false evictions")
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.simulation in ("crowd", "detection"):
        from decentral.simulator import large_command

        return (
            large_command.crowd_command(args)
            if args.simulation == "crowd"
            else (large_command.detection_command(args))
        )
    if args.simulation == "collectives":
        from decentral.simulator.collectives_command import collectives_command

        return collectives_command(
            peers=args.peers,
            size_kib=args.size_kib,
            table=args.table,
            seed=args.seed,
            plot=args.plot,
            json=args.json,
        )
    from decentral.simulator import simulate_command

    return simulate_command(
        peers=args.peers,
        seeds=args.seeds,
        seed=args.seed,
        scenario=args.scenario,
        json=args.json,
        fresh=args.fresh,
        jobs=args.jobs,
        simulated_s=args.simulated_s,
        for_s=args.for_s,
        trace=args.trace,
    )
