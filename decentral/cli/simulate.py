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
    which.add_argument("--seeds", type=int, default=10, help="run seeds 0 … K−1 (default 10)")
    which.add_argument("--seed", type=int, help="run this one seed")
    parser.add_argument("--scenario", default="everything", help="which faults (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object per seed")
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


def run(args: argparse.Namespace) -> int:
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
    )
