"""Fixtures of the network tests: a host of their own, and namespaces attached to it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from ckpt.kernel import netns, probe
from ckpt.model.travel import TUNNELS
from tests.net import cells, spaces, tally

# Duplicate address detection takes a second and more; tests that are about it turn it on again.
NO_DETECTION = "sysctl -qw net.ipv6.conf.default.accept_dad=0"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell which kinds of things were copied on this machine, in how many tests, and the table of contexts."""
    if lines := tally.lines():
        terminalreporter.section("copied and compared here, in so many tests")
        for line in lines:
            terminalreporter.write_line(line)
    reports = [report for report in terminalreporter.stats.get("passed", ()) if report.when == "call"]
    if lines := cells.lines(cell for report in reports for key, cell in report.user_properties if key == cells.KEY):
        terminalreporter.section("cells of the table of contexts that passed here")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def _tunnel_drivers(_nothing_left_behind: None) -> None:
    """Loaded before there is a namespace of a test: one that comes later puts links of its own into some of them.

    With what no tool loads when it is asked for.
    """
    probe.missing_link_kinds(sorted(TUNNELS))
    if shutil.which("modprobe"):
        asked = ("fou", "fou6", "mpls_router", "mpls_iptunnel", "nf_conntrack_ftp", "ip_vs")
        subprocess.run(["modprobe", "--all", "--quiet", *asked], capture_output=True, check=False)


@pytest.fixture
def host() -> Iterator[int]:
    """A fresh namespace that stands for the host: the test itself is in it. It has an empty bridge br0, up."""
    with spaces.fresh() as space, netns.entered(space):
        spaces.shell(NO_DETECTION)
        spaces.shell("ip link set lo up; ip link add br0 address 02:00:00:00:00:fe type bridge; ip link set br0 up")
        yield space


@pytest.fixture
def group(host: int) -> Iterator[int]:
    """A namespace attached to the host's bridge by a veth pair, eth0 inside and veth0 outside, without addresses."""
    with spaces.fresh() as space:
        spaces.shell(NO_DETECTION, space)
        spaces.shell(
            f"ip link add veth0 type veth peer name eth0 netns {spaces.path(space)}; ip link set veth0 master br0 up"
        )
        spaces.shell("ip link set lo up; ip link set eth0 up", space)
        yield space
