"""BPF programs on the way of packets: none can travel, so each is found and named."""

from __future__ import annotations

import socket

import pytest

from ckpt.kernel import netns, rtnl
from ckpt.model.finding import Severity
from ckpt.model.travel import cannot_travel
from tests.net import programs
from tests.net.spaces import shell


def blocking(space: int) -> list[tuple[str, str]]:
    found = cannot_travel(rtnl.read_network(space))
    assert all(finding.severity is Severity.BLOCK and finding.remedy for finding in found)
    return [(finding.code, finding.subject) for finding in found]


def index_of(space: int, ifname: str) -> int:
    with netns.entered(space):
        return socket.if_nametoindex(ifname)


def test_xdp_program_blocks(group: int) -> None:
    with programs.loaded(programs.XDP) as program:
        programs.attach_xdp(group, index_of(group, "eth0"), program)
        assert blocking(group) == [("link-xdp", "link eth0")]


def test_filter_by_a_program_blocks(group: int) -> None:
    shell("tc qdisc add dev eth0 clsact", group)
    with programs.loaded(programs.SCHED_CLS) as program:
        programs.attach_filter(group, index_of(group, "eth0"), program)
        assert blocking(group) == [("tc-filter", "filter 1 at ffff:fff2 of eth0")]


def test_route_through_a_program_blocks(group: int) -> None:
    with programs.loaded(programs.LWT_XMIT) as program:
        programs.attach_to_route(group, index_of(group, "eth0"), program)
        assert blocking(group) == [("route-encapsulation", "route 10.77.0.0/16")]


def test_tcx_program_blocks(group: int) -> None:
    with programs.loaded(programs.SCHED_CLS) as program:
        index = index_of(group, "eth0")
        with netns.entered(group):
            if not programs.attach_tcx(index, program):
                pytest.skip("this kernel has no tcx")
        assert blocking(group) == [("bpf-attached", "link eth0")]
