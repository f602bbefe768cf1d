"""`scripts/bench`: choose a benchmark, give it a stage of its own, and show what it found."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benches import context, dump, measure, migrate, net, plot, podman

STAGE = "CKPT_BENCH_STAGE"


def main() -> int:
    """The exit status: 0 also when a goal is missed, because one run on a busy machine proves nothing."""
    arguments = _parser().parse_args()
    if os.geteuid() != 0:
        print("bench: run it as root: sudo scripts/bench", file=sys.stderr)
        return 7
    if STAGE not in os.environ:
        argv = ["unshare", "--net", "--mount", "--", sys.executable, "-m", "benches", *sys.argv[1:]]
        os.execvpe("unshare", argv, {**os.environ, STAGE: "1"})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=arguments.directory) as place:
        os.environ |= {"CKPT_STATE_DIR": f"{place}/run", "CKPT_LOG_DIR": f"{place}/log"}
        os.mkdir(f"{place}/run")
        # In memory, as /run is.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "run", f"{place}/run"], check=True)
        try:
            arguments.run(arguments, Path(place))
        finally:
            subprocess.run(["umount", "--lazy", f"{place}/run"], check=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    benches = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--rounds", type=int, default=5, help="how often each does the work (default: 5)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    common.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios there, as an SVG")
    common.add_argument("--directory", type=Path, metavar="DIR", help="where images are written (default: /tmp)")
    own = benches.add_parser("net", parents=[common], help="read and apply a large network: ckpt against ip")
    own.add_argument("--links", type=int, default=1000)
    own.add_argument("--addresses", type=int, default=2000)
    own.add_argument("--routes", type=int, default=10000)
    own.set_defaults(run=_net)
    own = benches.add_parser("dump", parents=[common], help="dump and restore: ckpt against criu")
    own.add_argument("--sizes", default="10,1024", metavar="MB,MB", help="memory of the group (default: 10,1024)")
    own.add_argument("--memory", default="mixed", metavar="KIND,KIND", help="noise, text or mixed (default: mixed)")
    own.add_argument("--processes", default="1", metavar="N,N", help="that share the memory (default: 1)")
    own.add_argument("--connections", default="0", metavar="N,N", help="within the group (default: 0)")
    own.set_defaults(run=_dump)
    own = benches.add_parser("podman", parents=[common], help="dump and restore: ckpt against podman")
    own.add_argument("--sizes", default="10,1024", metavar="MB,MB", help="memory of the group (default: 10,1024)")
    own.set_defaults(run=_podman)
    own = benches.add_parser("migrate", parents=[common], help="move a redis to another host: ckpt against by hand")
    own.add_argument("--sizes", default="10,1024", metavar="MB,MB", help="memory of the group (default: 10,1024)")
    own.set_defaults(run=_migrate)
    own = benches.add_parser("context", parents=[common], help="sockets in, beside and without IP-set contexts")
    own.set_defaults(run=_context)
    return parser


def _net(arguments: argparse.Namespace, place: Path) -> None:
    size = net.Size(links=arguments.links, addresses=arguments.addresses, routes=arguments.routes)
    rows = net.compare(size, arguments.rounds, place)
    measure.show(rows)
    print()
    memory = net.memory(size, place)
    net.show_memory(memory)
    if arguments.json:
        measure.write_json(arguments.json, _machine(), rows, memory=[asdict(one) for one in memory])


def _dump(arguments: argparse.Namespace, place: Path) -> None:
    shapes = [
        dump.Shape(megabytes=megabytes, memory=memory, processes=processes, connections=connections)
        for megabytes in map(int, arguments.sizes.split(","))
        for memory in arguments.memory.split(",")
        for processes in map(int, arguments.processes.split(","))
        for connections in map(int, arguments.connections.split(","))
    ]
    rows = [row for shape in shapes for row in dump.compare(shape, arguments.rounds, place)]
    _tell(arguments, rows)


def _podman(arguments: argparse.Namespace, place: Path) -> None:
    shapes = [dump.Shape(megabytes=megabytes) for megabytes in map(int, arguments.sizes.split(","))]
    _tell(arguments, podman.compare(shapes, arguments.rounds, place))


def _migrate(arguments: argparse.Namespace, place: Path) -> None:
    rows = [
        row
        for megabytes in map(int, arguments.sizes.split(","))
        for row in migrate.compare(megabytes, arguments.rounds, place)
    ]
    _tell(arguments, rows)


def _context(arguments: argparse.Namespace, place: Path) -> None:
    _tell(arguments, context.compare(place, arguments.rounds))


def _tell(arguments: argparse.Namespace, rows: Sequence[measure.Row]) -> None:
    measure.show(rows)
    if arguments.json:
        measure.write_json(arguments.json, _machine(), rows)
    if arguments.plot:
        arguments.plot.write_text(plot.drawing(rows))


def _machine() -> dict[str, object]:
    names = os.uname()
    return {"kernel": names.release, "machine": names.machine, "cpus": os.cpu_count(), "load": os.getloadavg()[0]}


if __name__ == "__main__":
    sys.exit(main())
