"""What `ckpt diff` sees of a real group: nothing while nothing happens, and just what was changed."""

from __future__ import annotations

import json
import os

import pytest

from ckpt.cli import main
from ckpt.diff import Change, diff
from ckpt.kernel import netns
from ckpt.live import read_checkpoint
from ckpt.model.checkpoint import Checkpoint
from tests.criu.groups import Group, Starter
from tests.net.spaces import settle, shell


def change(group: Group, script: str) -> None:
    """Run ``script`` in the network of the live group."""
    space = netns.open_of(group.pid)
    try:
        shell(script, space)
        settle(space)
    finally:
        os.close(space)


def dumped(group: Group) -> Checkpoint:
    """The image of the group, which runs on."""
    change(group, "true")
    group.dump(leave_running=True)
    return read_checkpoint(group.image)


def test_diff_of_a_live_group_shows_what_was_changed_since(start: Starter) -> None:
    group = start.stream_server()
    with group.stream():
        before = dumped(group)
        assert diff(before, read_checkpoint(group.target)) == ()
        change(
            group,
            "ip address add 192.0.2.7/32 dev eth0; ip route add 198.51.100.0/24 dev eth0 metric 5;"
            "sysctl -qw net.ipv4.tcp_ecn=1; ip link set eth0 alias new;"
            "nft 'table inet f { chain c { type filter hook output priority 0; counter; }; }'",
        )
        found = {(item.section, item.name, item.change) for item in diff(before, read_checkpoint(group.pid))}
        assert found == {
            ("links", "eth0", Change.CHANGED),
            ("addresses", "192.0.2.7/32 dev eth0", Change.ADDED),
            ("routes", "198.51.100.0/24 metric 5", Change.ADDED),
            ("routes", "local 192.0.2.7/32 table 255", Change.ADDED),
            ("sysctls", "net/ipv4/tcp_ecn", Change.ADDED),
            ("nftables", "inet f", Change.ADDED),
        }


def test_diff_of_a_restored_group_with_its_image_is_empty(start: Starter) -> None:
    group = start.stream_server()
    with group.stream():
        change(group, "true")
        group.round_trip()
        change(group, "true")
        assert diff(read_checkpoint(group.image), read_checkpoint(group.target)) == ()


def test_command_takes_an_image_and_a_group(start: Starter, capsys: pytest.CaptureFixture[str]) -> None:
    group = start.stream_server()
    dumped(group)
    capsys.readouterr()
    assert main.invoke(["diff", str(group.image), str(group.target)]) == 0
    change(group, "ip link set eth0 mtu 1400")
    assert main.invoke(["diff", "--json", str(group.image), str(group.pid)]) == 14
    out, err = capsys.readouterr()
    (found,) = json.loads(out.removeprefix("no differences\n"))["differences"]
    assert found["fields"] == [{"field": "mtu", "before": 1500, "after": 1400, "lines": []}]
    assert err == ""
