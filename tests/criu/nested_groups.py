"""Groups of which some tasks have network namespaces of their own, and the means to look into these."""

from __future__ import annotations

import os
import subprocess

from ckpt.kernel import netns, proc
from tests.criu.groups import Group, Starter, python, wait_for
from tests.criu.segment import Segment, run

NESTED = "unshare --net -- {} &"
SERVER = " ".join(python("stream_server.py"))


def command(*children: str) -> list[str]:
    """A shell that starts ``children``, each in a network namespace of its own, and waits for them."""
    return ["sh", "-c", " ".join(NESTED.format(child) for child in children) + " wait"]


def inside(pid: int, *argv: str) -> str:
    """What a command says in the network namespace of ``pid``."""
    return run("nsenter", f"--net=/proc/{pid}/ns/net", *argv)


def configure(pid: int, script: str) -> None:
    """Run each line of ``script`` as a command in the network namespace of ``pid``."""
    for line in filter(None, map(str.strip, script.splitlines())):
        inside(pid, *line.split())


def nested_pids(group: Group) -> list[int]:
    """The tasks that are not in the root task's network namespace, in their order."""
    root = os.stat(f"/proc/{group.pid}/ns/net").st_ino
    return [pid for pid in proc.tree_pids(group.pid) if os.stat(f"/proc/{pid}/ns/net").st_ino != root]


def routed(start: Starter, *arguments: object) -> Group:
    """A stream server in a nested namespace (10.78.0.2, fd78::2), behind a veth pair to the root task's.

    That one forwards to the segment, whose client knows the way.
    """
    group = start(command(" ".join(python("stream_server.py", *arguments))))
    group.wait_for_log("ready")
    [server] = nested_pids(group)
    configure(
        group.pid,
        f"""ip link add down0 index 40 mtu 1400 type veth peer name eth0 index 40 mtu 1400 netns {server}
        ip link set down0 up
        ip addr add 10.78.0.1/24 dev down0
        ip addr add fd78::1/64 dev down0 nodad
        sysctl -qw net.ipv4.ip_forward=1
        sysctl -qw net.ipv6.conf.all.forwarding=1""",
    )
    configure(
        server,
        """ip link set lo up
        ip link set eth0 up
        ip addr add 10.78.0.2/24 dev eth0
        ip addr add fd78::2/64 dev eth0 nodad
        ip route add default via 10.78.0.1
        ip route add default via fd78::1""",
    )
    start.segment.in_client("ip", "route", "add", "10.78.0.0/24", "via", group.addresses.v4)
    start.segment.in_client("ip", "route", "add", "fd78::/64", "via", group.addresses.v6)
    wait_until_reachable(start.segment, "10.78.0.2", "fd78::2")
    return group


def wait_until_reachable(segment: Segment, *addresses: str) -> None:
    """Wait until the kernel's worker has told everybody that the new links have a carrier."""
    for address in addresses:

        def answers(address: str = address) -> bool:
            with netns.entered(segment.client):
                return subprocess.run(["ping", "-c1", "-W1", address], capture_output=True).returncode == 0

        wait_for(answers, f"{address} answers")
