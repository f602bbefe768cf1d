"""Groups restored under other names: addresses, links and ports, by real processes and a client on the wire."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt import sections
from ckpt.errors import RefusedError
from ckpt.image import Reader
from ckpt.kernel import criu
from ckpt.mapping import Mapping, parse_mapping
from ckpt.model.finding import Severity
from ckpt.restore import RestoreReport, examine, macs_of
from tests.criu.groups import Group, Starter, python
from tests.criu.segment import Addresses, Segment, made, run
from tests.criu.test_command import ckpt
from tests.criu.test_foreign import Launch, launch

__all__ = ["launch"]


def named(start: Starter, **spec: Any) -> Group:
    addresses = start.segment.addresses()
    group = start(python("named_sockets.py", addresses.v4, addresses.v6), addresses=addresses, **spec)
    group.wait_for_log("ready")
    return group


def other(group: Group, *, ports: tuple[str, ...] = (), links: tuple[str, ...] = ()) -> tuple[Addresses, Mapping]:
    """Addresses that nobody has, and the mapping of the group's to them."""
    new, old = group.segment.addresses(), group.addresses
    pairs = [f"{old.v4}={new.v4}", f"{old.v6}={new.v6}"]
    return new, parse_mapping(pairs, ports=ports, links=links)


def said(segment: Segment, address: str, port: int = 7000) -> str:
    with segment.connect(address, port) as client:
        return client.recv(100).decode()


def inside(group: Group, *command: str) -> str:
    return run("nsenter", f"--net=/proc/{group.pid}/ns/net", *command)


def codes(report: RestoreReport) -> set[str]:
    return {one.code for one in report.findings}


def test_restore_under_other_addresses_and_ports(start: Starter) -> None:
    group = named(start)
    assert said(group.segment, group.addresses.v4) == f"tcp udp {group.addresses.v4} {group.addresses.v4}\n"
    inside(group, "nft", f"table ip x {{ chain y {{ ip daddr {group.addresses.v4} counter; }}; }}")
    new, mapping = other(group, ports=("7000=7070",))
    group.dump()
    report = group.restore(mapping=mapping)
    assert {"map-follows", "map-port-kept"} <= codes(report)
    for address in new:
        assert said(group.segment, address.partition("/")[0], 7070) == f"tcp udp {new.v4} {new.v4}\n"
    assert f"ip daddr {new.v4} counter" in inside(group, "nft", "list", "ruleset")
    held = [one["local"] for link in json.loads(inside(group, "ip", "-j", "addr")) for one in link["addr_info"]]
    assert {new.v4, new.v6} <= set(held) and not {group.addresses.v4, group.addresses.v6} & set(held)
    with group.segment.socket(new.v4, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        client.connect((new.v4, 7070))
        client.send(b"there and")
        assert client.recv(100) == b"there and back"
    # And from there on again, as it is now.
    group.round_trip()
    assert said(group.segment, new.v4, 7070) == f"tcp udp {new.v4} {new.v4}\n"


def test_restore_of_a_connection_under_another_address_blocks(start: Starter) -> None:
    group = start.stream_server()
    with group.stream() as stream:
        stream.progress()
        _, mapping = other(group)
        group.dump()
        with pytest.raises(RefusedError) as caught:
            group.restore(mapping=mapping)
        assert caught.value.code == "map-connection"
        assert f"{group.addresses.v4}:7000 – " in (caught.value.details or "")
        # Nothing was touched: as it was, it goes on.
        group.restore()
        stream.progress()
        stream.finish()


def test_restore_of_a_connection_under_another_address_closes_it_when_asked(start: Starter) -> None:
    group = start.stream_server()
    with group.stream() as stream:
        stream.progress()
        new, mapping = other(group)
        group.dump()
        report = group.restore(mapping=mapping, tcp_close=True)
        (closed,) = [one for one in report.findings if one.code == "tcp-closed"]
        assert (report.connections, closed.severity) == (0, Severity.WARN)
        assert f"{group.addresses.v4}:7000 – " in closed.reason
    with group.stream(new.v4) as stream, group.stream(new.v6) as six:
        stream.progress()
        six.progress()
        stream.finish()
        six.finish()


def test_restore_tcp_close_leaves_connections_within_the_group(start: Starter) -> None:
    group = named(start)
    with group.segment.connect(group.addresses.v4, 7000) as client:
        client.recv(100)
    group.dump()
    report = group.restore(tcp_close=True)
    assert report.connections == 2
    assert said(group.segment, group.addresses.v4).startswith("tcp udp")


def test_restore_on_another_bridge(start: Starter) -> None:
    group = start.stream_server()
    group.dump()
    with made() as elsewhere:
        report = group.restore(mapping=parse_mapping(links=[f"{group.segment.bridge}={elsewhere.bridge}"]))
        assert "map-follows" in codes(report)
        group.segment = elsewhere
        with group.stream() as stream:
            stream.progress()
            stream.finish()
        group.dump()


def test_restore_on_a_bridge_that_is_not_there_blocks(start: Starter, unique: Callable[[str], str]) -> None:
    group = start.stream_server()
    group.dump()
    missing = unique("br")
    with pytest.raises(RefusedError) as caught:
        group.restore(mapping=parse_mapping(links=[f"{group.segment.bridge}={missing}"]))
    assert caught.value.code == "link-missing"
    assert missing not in run("ip", "link")


def test_restore_in_the_hosts_network_under_another_address(start: Starter, launch: Launch) -> None:
    host = start.segment.host
    group = start.adopt(launch(python("named_sockets.py", host.v4, host.v6)), host)
    new, mapping = other(group, ports=("7000=7070",))
    group.dump()
    with pytest.raises(RefusedError) as caught:
        group.restore(mapping=mapping)
    # The host does not have it yet.
    assert caught.value.code == "address-missing"
    for address in new:
        run("ip", "addr", "add", address, "dev", group.segment.bridge, *(["nodad"] if ":" in address else []))
    group.restore(mapping=mapping)
    try:
        assert said(group.segment, new.v4, 7070) == f"tcp udp {new.v4} {new.v4}\n"
        assert said(group.segment, new.v6, 7070) == f"tcp udp {new.v4} {new.v4}\n"
    finally:
        group.dump()


def test_command_maps_from_words_and_a_file(start: Starter, tmp_path: Path) -> None:
    group = named(start)
    new = group.segment.addresses()
    group.dump()
    file = tmp_path / "map.toml"
    file.write_text(f'[address]\n"{group.addresses.v6}" = "{new.v6}"\n[port]\n7000 = 7071\n')
    words = ["--map", file, "--map-address", f"{group.addresses.v4}={new.v4}"]
    dry = found("restore", group.image, *words, "--dry-run")
    assert {("map-follows", f"{group.addresses.v4}={new.v4}"), ("address", new.v6)} <= set(dry)
    assert found("check", group.image, *words) == dry
    assert ckpt("check", *words).returncode == 2
    assert ckpt("restore", group.image, *words, "--map-port", "7000=1").returncode == 2
    done = ckpt("restore", group.image, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert said(group.segment, new.v6, 7071) == f"tcp udp {new.v4} {new.v4}\n"
    assert os.path.exists(f"/proc/{json.loads(done.stdout)['pid']}")


def found(*words: object) -> list[tuple[str, str]]:
    """The findings that a command prints."""
    return [(one["code"], one["subject"]) for one in json.loads(ckpt(*words, "--json").stdout)["findings"]]


def test_check_says_what_a_dry_run_with_the_same_options_does(start: Starter) -> None:
    group = start.stream_server("--family", "v4")
    with group.stream() as stream:
        stream.progress()
        group.dump()
        words = ["--map-address", f"{group.addresses.v4}={group.segment.addresses().v4}"]
        assert ckpt("check", group.image, *words).returncode == 3
        words += ["--tcp-close", "--name", "other"]
        dry = found("restore", group.image, *words, "--dry-run")
        assert {("tcp-closed", "1 TCP connections"), ("group-name", "other")} <= set(dry)
        assert ckpt("check", group.image, *words).returncode == 0
        assert found("check", group.image, *words) == dry


NETWORK = (
    "ip route add 203.0.113.0/24 via 10.77.0.1 src {v4}",
    "ip route add 198.51.100.0/24 dev eth0 src {v4} table 77",
    "ip rule add from 10.77.0.0/24 table 77 priority 900",
    "ip neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0",
    "ip link add vx type vxlan id 7 local {v4} remote 10.77.0.9 dstport 4789",
    (
        "nft table inet f {{ set s {{ type ipv4_addr; flags interval; elements = {{ 10.77.0.0/28 }}; }};"
        " chain c {{ type filter hook input priority 0; ip daddr {v4} counter; ip saddr @s counter; }}; }}"
    ),
)


def shown(group: Group) -> dict[str, str]:
    commands = (
        "ip rule",
        "ip route show table all type unicast",
        "ip neigh show nud permanent",
        "ip -d link show vx",
        "nft list ruleset",
    )
    return {command: inside(group, *command.split()) for command in commands}


def test_restore_of_a_whole_network_in_another_prefix(start: Starter) -> None:
    addresses = start.segment.addresses()
    group = start(
        python("named_sockets.py", addresses.v4, addresses.v6), addresses=addresses, gateways=(start.segment.host.v4,)
    )
    group.wait_for_log("ready")
    for command in NETWORK:
        words = command.format(v4=addresses.v4)
        inside(group, *(["nft", words.removeprefix("nft ")] if words.startswith("nft") else words.split()))
    before = shown(group)
    group.dump()
    run("ip", "addr", "add", "10.88.0.1/24", "dev", group.segment.bridge)
    group.segment.in_client("ip", "addr", "add", "10.88.0.2/24", "dev", "eth0")
    report = group.restore(mapping=parse_mapping(["10.77.0.0/24=10.88.0.0/24"]))
    assert [one for one in report.findings if one.severity is not Severity.OK] == []
    new = addresses.v4.replace("10.77.", "10.88.")
    assert said(group.segment, new) == f"tcp udp {new} {new}\n"
    for command, text in shown(group).items():
        wanted = before[command].replace("10.77.", "10.88.")
        assert text_of(text) == text_of(wanted), command


def text_of(text: str) -> list[str]:
    """Lines without what counts, ages, or is numbered anew."""
    passing = r"packets \d+ bytes \d+|expires \S+|link-netnsid \d+|^.*fe80.*$"
    return sorted(line.rstrip() for line in re.sub(passing, "", text, flags=re.MULTILINE).splitlines() if line.strip())


def test_restore_where_a_stranger_has_the_new_address_blocks(start: Starter) -> None:
    group = start.stream_server()
    new, mapping = other(group)
    group.dump()
    group.segment.in_client("ip", "addr", "add", f"{new.v4}/24", "dev", "eth0")
    with pytest.raises(RefusedError) as caught:
        group.restore(mapping=mapping)
    assert caught.value.code == "address-in-use"
    assert f"{new.v4}: " in (caught.value.details or "") and f"{new.v6}: " not in (caught.value.details or "")
    group.segment.in_client("ip", "addr", "del", f"{new.v4}/24", "dev", "eth0")
    group.restore(mapping=mapping)


def test_examine_tells_the_source_that_has_the_address_from_a_stranger(start: Starter) -> None:
    group = start.stream_server()
    group.dump(leave_running=True)
    with Reader(group.image) as reader:
        checkpoint = sections.read(reader)
    version = criu.version(criu.find(None))

    def found(*, moves: bool) -> dict[str, str]:
        name = f"{checkpoint.group.name}-2"
        # Without the registry's word for it, as on another host.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("ckpt.registry.entries", list)
            findings = examine(checkpoint, version, name, held_by=macs_of(checkpoint) if moves else ())
        return {one.subject: one.code for one in findings if one.code.startswith("address")}

    v4, v6 = group.addresses.v4, group.addresses.v6
    assert found(moves=False) == {v4: "address-in-use", v6: "address-in-use"}
    assert found(moves=True) == {v4: "address-held", v6: "address-held"}
    group.segment.in_client("ip", "addr", "add", f"{v4}/24", "dev", "eth0")
    assert found(moves=True) == {v4: "address-in-use", v6: "address-held"}
