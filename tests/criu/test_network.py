"""The network travels: what a namespace consists of is the same after the restore, and what depends on it works."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
from collections import Counter
from typing import Any

import pytest

from ckpt import sections
from ckpt.image import Reader, Writer
from ckpt.model.wireguard import WireguardDevice, WireguardPeer
from ckpt.restore import ANNOUNCE_AFTER, restore_group
from tests.criu.capture import capturing
from tests.criu.groups import Group, Starter, python, wait_for
from tests.criu.segment import run

SETTINGS = [
    "ip addr add 10.78.0.1/32 dev lo",
    "ip addr add 10.79.0.5/24 dev eth0 label eth0:1 valid_lft 5000 preferred_lft 4000 noprefixroute",
    "ip addr add 10.80.0.5 peer 10.80.0.6/32 dev eth0 scope link",
    "ip addr add fd79::5/64 dev eth0 nodad valid_lft 5000 preferred_lft 0 noprefixroute",
    "ip link add br7 address 02:00:00:00:77:01 type bridge",
    "ip link add macvlan7 link eth0 address 02:00:00:00:77:02 type macvlan mode bridge",
    "ip link add left7 mtu 1400 type veth peer right7",
    "ip link set left7 master br7 up",
    "ip link set right7 up",
    "ip link set br7 up",
    "ip addr add 192.0.2.1/24 dev br7",
    "ip link set macvlan7 up txqueuelen 77",
    "ip link set eth0 mtu 1450",
    "ip route add default via 10.77.0.1",
    "ip route add 203.0.113.0/24 via 10.77.0.2 metric 50 mtu 1300",
    "ip route add blackhole 198.51.100.0/24",
    "ip route add 203.0.113.0/24 via 10.77.0.1 table 100",
    "ip -6 route add default via fd77::1 table 100",
    "ip -6 route add 2001:db8::/32 via fd77::2 metric 7",
    "ip rule add from 10.78.0.1 lookup 100 priority 1000",
    "ip rule add fwmark 0x7 lookup 100 priority 1001",
    "ip -6 rule add to 2001:db8::/32 lookup 100 priority 1002",
    "ip neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
    "ip -6 neigh add fd77::99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
    "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.eth0.rp_filter=2 net.ipv4.tcp_keepalive_time=123",
    "sysctl -qw net.ipv6.conf.eth0.accept_ra=0 net.core.somaxconn=777",
]

RULESET = """
table inet filter {
    counter seen { }
    set friends {
        type ipv4_addr
        flags interval
        elements = { 10.77.0.0/24, 192.0.2.7 }
    }
    map doors {
        type inet_service : verdict
        elements = { 7000 : accept }
    }
    chain input {
        type filter hook input priority 0; policy drop;
        iif "lo" accept
        ct state established,related counter accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        ip saddr @friends tcp dport vmap @doors
        counter name "seen" drop
    }
}
table ip nat {
    chain prerouting {
        type nat hook prerouting priority -100;
        tcp dport 7077 redirect to :7000
    }
}
"""


def inside(group: Group, *argv: str) -> str:
    """What a command says in the group's namespace."""
    return run("nsenter", f"--net=/proc/{group.pid}/ns/net", "--", *argv)


def shown(group: Group) -> dict[str, Any]:
    """The namespace in the words of iproute2, nft and sysctl, without what counts or passes."""
    commands = {
        "link": "ip -j -d link",
        "address": "ip -j addr",
        "route": "ip -j -4 route show table all",
        "route6": "ip -j -6 route show table all",
        "rule": "ip -j -4 rule",
        "rule6": "ip -j -6 rule",
        "neighbour": "ip -j neigh show nud permanent",
        "ruleset": "nft list ruleset",
        "sysctl": "sysctl -a --pattern ^net.(ipv4|ipv6|core)",
    }
    found = {name: inside(group, *command.split()) for name, command in commands.items()}
    values: dict[str, Any] = {
        name: settled(json.loads(text)) if text.startswith("[") else text for name, text in found.items()
    }
    # The kernel makes link-local and multicast routes of each link as it comes up: their order says nothing.
    values["route6"].sort(key=json.dumps)
    return values


def settled(value: Any) -> Any:
    """Without the names that are new each time, and with times by the thousand seconds."""
    if isinstance(value, dict):
        lifetimes = {"valid_life_time", "preferred_life_time"}
        passing = {"link_netnsid", *(key for key in value if key.endswith("_timer"))}
        # The index of the host's end, which is made anew, under a name of its own.
        if value.get("ifname") == "eth0":
            passing.add("link_index")
        return {
            key: round(item, -3) if key in lifetimes else settled(item)
            for key, item in value.items()
            if key not in passing
        }
    if isinstance(value, list):
        return [settled(item) for item in value]
    return value


def test_round_trip_whole_namespace_is_the_same(start: Starter) -> None:
    group = start.stream_server()
    for setting in SETTINGS:
        inside(group, *setting.split())
    wait_for(lambda: "tentative" not in inside(group, "ip", "addr"), "duplicate address detection is done")
    with group.stream() as stream:
        stream.progress()
        before = shown(group)
        for _ in range(2):
            group.round_trip()
            after = shown(group)
            for name, wanted in before.items():
                assert after[name] == wanted, name
        stream.progress()
        stream.finish()


def test_round_trip_stateful_ruleset_lets_the_connection_live_on(start: Starter) -> None:
    """The ruleset accepts nothing but what conntrack knows, and new connections from friends to one port."""
    group = start.stream_server()
    inside(group, "nft", RULESET)
    with group.stream() as stream, group.stream(port=7077) as redirected:
        stream.progress()
        redirected.progress()
        # From here on only what conntrack knows gets in.
        inside(group, "nft", "flush map inet filter doors")
        before = ruleset(group)
        group.round_trip()
        after = ruleset(group)
        assert without_counts(after) == without_counts(before)
        assert all(now >= then for now, then in zip(counts(after), counts(before), strict=True))
        assert min(counts(before)) == 0 < max(counts(before))
        stream.progress()
        redirected.progress()
        for one in (stream, redirected):
            one.finish()
        inside(group, "nft", "add element inet filter doors { 7000 : accept }")
        with group.stream() as new:
            new.progress()
            new.finish()


def ruleset(group: Group) -> str:
    """Its nftables ruleset, with what it has counted."""
    return inside(group, "nft", "list", "ruleset")


def counts(text: str) -> list[int]:
    """How many packets each counter has seen."""
    return [int(found) for found in re.findall(r"packets (\d+)", text)]


def without_counts(text: str) -> str:
    """A ruleset without what it has counted."""
    return re.sub(r"packets \d+ bytes \d+", "", text)


def test_restore_by_a_clock_behind_that_of_the_dump_warns_of_wireguard(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = start.stream_server()
    group.dump()
    with Reader(group.image) as reader:
        checkpoint = sections.read(reader)
    assert checkpoint.network is not None
    # As of a group with a tunnel, which not every kernel has; nothing but the records counts here.
    device = WireguardDevice(ifname="wg7", peers=(WireguardPeer(public_key="k"),))
    network = dataclasses.replace(checkpoint.network, wireguard=(device,))
    image = group.images / "tunnel.ckpt"
    with image.open("xb") as out, Writer(out, "none", label="it") as writer:
        sections.write(writer, dataclasses.replace(checkpoint, network=network))
        writer.finish()

    def warned() -> list[str]:
        findings = restore_group(image, dry_run=True).findings
        return [one.subject for one in findings if one.code == "wireguard-clock"]

    assert warned() == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert warned() == ["wg7"]


def test_round_trip_macvlan(start: Starter) -> None:
    """A macvlan on the host's link; the host itself does not hear its macvlans, other machines do."""
    group = start.stream_server(kind="macvlan")
    with group.stream() as stream:
        stream.progress()
        group.round_trip()
        assert "macvlan mode bridge" in inside(group, "ip", "-d", "link", "show", "eth0")
        stream.progress()
        stream.finish()


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_round_trip_udp_goes_on(start: Starter, version: str) -> None:
    group = start(python("udp_echo.py", 7003))
    group.wait_for_log("ready")
    address = getattr(group.addresses, version)
    with group.segment.socket(address, socket.SOCK_DGRAM) as client:
        client.connect((address, 7003))
        client.settimeout(60)
        for number in range(6):
            client.send(b"datagram")
            # Its state is kept: it counts on.
            assert client.recv(64) == b"%d datagram" % number
            if number == 2:
                group.round_trip()
        # While it is away datagrams are lost, as they may be, and nobody says that there is no such port.
        group.dump()
        client.send(b"lost")
        group.restore()
        client.send(b"datagram")
        assert client.recv(64).endswith(b"6 datagram")


def test_restore_announces_each_address_five_times(start: Starter) -> None:
    group = start(["sleep", "infinity"])
    group.dump()
    with capturing() as capture:
        group.restore()
        # Nobody waits for the later ones.
        time.sleep(ANNOUNCE_AFTER[-1] + 1)
    told = Counter(capture.announced)
    assert len(ANNOUNCE_AFTER) == 4
    bridge = group.segment.bridge
    assert [told[bridge, address] for address in (group.addresses.v4, group.addresses.v6)] == [5, 5]


def test_dump_does_not_mind_that_addresses_are_still_announced(start: Starter) -> None:
    group = start(["sleep", "infinity"])
    group.round_trip()
    assert group.dump().warnings == ()
