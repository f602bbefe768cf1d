"""A large network read and made again: ckpt against `ip -j` that prints the same and `ip -batch` that makes the same.

The network is veth pairs (a kind that every kernel has), half of the addresses and of the routes IPv4 and half IPv6.
What ckpt reads beside what ip prints (sysctls, of which every link has more than a hundred, bridges, traffic control,
the ruleset) is compared with all the tools that show it together, as ``read all``. Applying includes the sysctls, too,
and with them a second reading of what the kernel made of the first steps; `ip -batch` does nothing of that kind.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benches import measure
from benches.measure import Peer, Row, Seconds
from ckpt.kernel import apply, netns, rtnl, sysctl
from ckpt.kernel.netlink import Netlink
from ckpt.kernel.rtnl_links import read_raw
from ckpt.model.network import Network
from ckpt.plan import plan_network

MEMORY_AT = (100, 300, 1000)
"""Numbers of links, addresses and routes in proportion."""

# No link-local addresses and no duplicate address detection: neither has anything to do with the work.
QUIET = "net.ipv6.conf.default.addr_gen_mode=1 net.ipv6.conf.default.accept_dad=0"

PRINT = (
    "ip -j -d link",
    "ip -j address",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j -4 rule",
    "ip -j -6 rule",
    "ip -j neigh",
)
PRINT_MORE = (
    "ip -j nexthop",
    "ip -j maddress",
    "bridge -j fdb",
    "bridge -j vlan",
    "bridge -j -d mdb",
    "tc -j qdisc",
    "nft -j list ruleset",
    "ip xfrm state",
    "ip xfrm policy",
)
"""What else ckpt reads. Most of it is empty here, and every one of these programs has to be started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much there is of each."""

    links: int
    addresses: int
    routes: int

    def with_links(self, links: int) -> Size:
        """As large in proportion."""
        part = links / self.links
        return Size(links=links, addresses=int(self.addresses * part), routes=int(self.routes * part))


def batch(size: Size) -> str:
    """The commands for `ip -batch` that make the network."""
    lines = ["link set lo up"]
    names = [f"v{number}" for number in range(size.links)]
    lines += [f"link add {one} type veth peer name {other}" for one, other in zip(names[::2], names[1::2], strict=True)]
    lines += [f"link set {name} up" for name in names]
    for number in range(size.addresses):
        name, place = names[number // 2 % size.links], number // 2
        four = f"10.{place >> 8 & 255}.{place & 255}.1/24"
        lines.append(f"address add {four if number % 2 == 0 else f'fd00:{place:x}::1/64'} dev {name}")
    for number in range(size.routes):
        name, place = names[number // 2 % size.links], number // 2
        near = min(size.addresses // 2, size.links) or 1
        if number % 2 == 0:
            gateway = f"10.{place % near >> 8 & 255}.{place % near & 255}.2"
            lines.append(f"route add 172.{16 + (place >> 16)}.{place >> 8 & 255}.{place & 255}/32 via {gateway}")
        else:
            lines.append(f"route add fd01:{place:x}::/64 via fd00:{place % near:x}::2 dev {name}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def quiet_namespace() -> Iterator[int]:
    """A fresh namespace; when the block ends, it is waited for that the kernel has taken it down."""
    space = netns.create()
    try:
        with netns.entered(space):
            subprocess.run(["sysctl", "-qw", *QUIET.split()], check=True)
        yield space
    finally:
        os.close(space)
        _await_takedown()


def _await_takedown() -> None:
    """Namespaces are taken down by a worker, in their order: the last one's link tells when it has come so far.

    It may have gone together with those of the one that is waited for, and no link is listed any more while the lock is
    still held for half a second that all else waits for. The worker begins with another only when it is done with that.
    """
    for _ in range(2):
        last = netns.create()
        there = f"/proc/{os.getpid()}/fd/{last}"
        command = f"ip link add benchend type veth peer name x netns {there}"
        subprocess.run(command.split(), check=True)
        os.close(last)
        with Netlink() as connection:
            while any(link.ifname == "benchend" for link in read_raw(connection).values()):
                time.sleep(0.02)


@contextlib.contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def _run(space: int, *argv: str) -> None:
    with netns.entered(space):
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def compare(size: Size, rounds: int, place: Path) -> list[Row]:
    """Read and apply the network of that size, in turn with ip."""
    gc.disable()  # as the command does
    commands = place / "batch"
    commands.write_text(batch(size))
    work = f"{size.links} links, {size.addresses} addresses, {size.routes} routes"
    with quiet_namespace() as source:
        _run(source, "ip", "-batch", str(commands))
        network = rtnl.read_network(source)
        peers = (Peer(name="ip -j", measure=lambda: _print(source)), Peer(name="ckpt", measure=lambda: _read(source)))
        rows = measure.compare(work, peers, rounds, {("read", "ckpt"): 2.0})
    peers = (
        Peer(name="ip -batch", measure=lambda: _batch(commands)),
        Peer(name="ckpt", measure=lambda: _apply(network)),
    )
    return rows + measure.compare(work, peers, rounds, {("apply", "ckpt"): 1.0})


def _print(space: int) -> Seconds:
    seconds: dict[str, float] = {}
    with _clock(seconds, "read"):
        for command in PRINT:
            _run(space, *command.split())
    with _clock(seconds, "read all"):
        for command in PRINT_MORE:
            _run(space, *command.split())
        with netns.entered(space):
            # Those that cannot be read are said on standard error.
            subprocess.run(["sysctl", "-a", "--pattern", "^net"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds["read all"] += seconds["read"]
    return seconds


def _read(space: int) -> Seconds:
    """``read`` is all but the sysctls, which are timed by themselves: also what `ip` alone does not print."""
    seconds: dict[str, float] = {}
    with _clock(seconds, "read all"):
        network = rtnl.read_network(space)
    with _clock(seconds, "sysctls"):
        sysctl.read_changed(space, {link.ifname: link.mtu for link in network.links})
    seconds["read"] = seconds["read all"] - seconds["sysctls"]
    return seconds


def _batch(commands: Path) -> Seconds:
    seconds: dict[str, float] = {}
    with quiet_namespace() as space, _clock(seconds, "apply"):
        _run(space, "ip", "-batch", str(commands))
    return seconds


def _apply(network: Network) -> Seconds:
    seconds: dict[str, float] = {}
    with quiet_namespace() as space, ExitStack() as undo, _clock(seconds, "apply"):
        apply.apply(space, plan_network(network, rtnl.read_network(space)), undo)
    return seconds


# -- memory ----------------------------------------------------------------------------------------------------------

_READER = """
import sys
from ckpt.kernel import rtnl
from ckpt.plan import plan_network
from ckpt.model.network import Network
# Not getrusage: what it says begins with the peak of the process that forked this one.
def peak(): return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
idle = peak()
network = rtnl.read_network(int(sys.argv[1]))
read = peak()
plan = plan_network(network, Network())
print(idle, read, peak())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak resident memory in KiB: with all modules loaded, after the network was read, and planned.

    ``per_link`` is what one link, with its share of addresses and routes, adds.
    """

    links: int
    idle: int
    read: int
    planned: int
    per_link: float


def memory(size: Size, place: Path) -> list[Memory]:
    """The memory that reading takes, by the number of links, each in a process of its own."""
    found: list[Memory] = []
    for links in MEMORY_AT:
        commands = place / f"batch-{links}"
        commands.write_text(batch(size.with_links(links)))
        with quiet_namespace() as space:
            _run(space, "ip", "-batch", str(commands))
            argv = [sys.executable, "-c", _READER, str(space)]
            done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, pass_fds=[space])
        idle, read, planned = map(int, done.stdout.split())
        found.append(Memory(links=links, idle=idle, read=read, planned=planned, per_link=(planned - idle) / links))
    return found


def show_memory(found: Sequence[Memory]) -> None:
    """Print what ``memory`` gives."""
    cells: list[tuple[str, ...]] = [("MEMORY", "", "", "LINKS", "IDLE", "READ", "PLANNED", "PER LINK")]
    for one in found:
        sizes = (f"{value} KiB" for value in (one.idle, one.read, one.planned))
        cells.append(("peak", "", "", str(one.links), *sizes, f"{one.per_link:.1f} KiB"))
    measure.table(cells)
