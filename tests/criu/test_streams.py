"""Established connections, verified byte by byte in both directions, across dump and restore."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from ckpt import registry
from ckpt.errors import NotFoundError
from ckpt.stop import stop_group
from tests import lab
from tests.criu.capture import capturing
from tests.criu.groups import Starter, python, wait_for
from tests.criu.stream import retransmits


@pytest.mark.parametrize("family", ["v4", "v6", "dual"])
def test_round_trip_streams_of_each_family_go_on(start: Starter, stack: ExitStack, family: str) -> None:
    group = start.stream_server("--family", family)
    v4, v6 = group.addresses.v4, group.addresses.v6
    addresses = {"v4": [v4], "v6": [v6], "dual": [v4, v6]}[family]
    streams = [
        stack.enter_context(group.stream(address, from_host=from_host))
        for address in addresses
        for from_host in (False, True)
    ]
    for stream in streams:
        stream.progress()
    report = group.round_trip()
    assert report.connections == len(streams)
    for stream in streams:
        stream.progress()
        stream.finish()


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_round_trip_no_packet_betrays(start: Starter, stack: ExitStack, version: str) -> None:
    before = lab.traces()
    group = start.stream_server()
    address = getattr(group.addresses, version)
    streams = [stack.enter_context(group.stream(address, from_host=from_host)) for from_host in (False, True)]
    # One whose client reads nothing: the server asks again and again whether its window has opened.
    stuck = stack.enter_context(group.stream(address, buffer=4096, reading=False))
    for stream in streams:
        stream.progress()
    with capturing() as capture:
        group.dump()
        away = len(capture.packets)
        assert lab.traces() == before, "the dump left something"
        # The clients retransmit, on and on, at an address that is not there.
        wait_for(lambda: all(retransmits(stream.socket) >= 3 for stream in streams), "the clients retransmit")
        group.restore()
        for stream in streams:
            stream.progress()
        stuck.reading = True
        stuck.progress()
    assert capture.seen_from(address) > 0
    assert any(one.destination == address for one in capture.packets[away:])
    assert capture.betrayals(group.addresses.v4, group.addresses.v6) == []
    for stream in (*streams, stuck):
        stream.finish()


def test_dump_new_connection_while_away_waits(start: Starter) -> None:
    """Between the freeze and the resumption a SYN is met with silence, and its retransmission is answered."""
    group = start.stream_server("--family", "v4")
    with group.stream() as stream, capturing() as capture:
        stream.progress()
        group.dump()
        late = group.segment.socket(group.addresses.v4, socket.SOCK_STREAM)
        late.setblocking(False)
        late.connect_ex((group.addresses.v4, 7000))
        group.restore()
        late.settimeout(60)
        assert late.recv(16)[:8] == bytes(8)
        stream.progress()
        assert capture.betrayals(group.addresses.v4) == []
        late.close()


def test_dump_leave_running_goes_on_and_image_restores_later(start: Starter) -> None:
    group = start.stream_server("--family", "v4")
    with group.stream() as stream, capturing() as capture:
        stream.progress()
        pid = group.pid
        report = group.dump(leave_running=True)
        assert (report.left_running, report.connections) == (True, 1)
        assert registry.get(report.name).pid == pid
        stream.progress()
        stream.finish()
        assert capture.betrayals(group.addresses.v4) == []
    stop_group(report.name)
    # The connection of the image is history by now, its client has seen it end; the listener is not.
    group.restore()
    with group.stream() as stream:
        stream.progress()
        stream.finish()


def test_restore_tcp_close_listener_lives_and_connection_ends(start: Starter) -> None:
    group = start.stream_server("--family", "v4")
    with group.stream() as stream:
        stream.progress()
        report = group.dump(tcp_close=True)
        assert report.connections == 0
        assert group.restore(tcp_close=True).connections == 0
        with pytest.raises(AssertionError, match="ConnectionResetError"):
            stream.progress(1 << 40)
    with group.stream() as stream:
        stream.progress()
        stream.finish()


def test_round_trips_with_bytes_on_the_way_each_time(start: Starter) -> None:
    group = start.stream_server("--family", "v4")
    with group.stream() as stream, group.stream(from_host=True) as other:
        for _ in range(3):
            stream.progress(100)
            other.progress(100)
            group.round_trip()
        stream.progress(100)
        stream.finish()
        other.progress(100)
        other.finish()


def test_dump_takes_the_group_away(start: Starter) -> None:
    before = lab.traces()
    group = start.stream_server()
    with group.stream():
        pid = group.pid
        group.dump()
    assert lab.traces() == before
    assert registry.start_time(pid) is None
    with pytest.raises(NotFoundError, match=f"no group is named {group.target}"):
        registry.get(str(group.target))
    assert [path.name for path in group.images.iterdir()] == [group.image.name]
    assert group.image.stat().st_mode & 0o777 == 0o600


def test_dump_tells_a_running_sender_nothing(start: Starter) -> None:
    group = start(python("udp_sender.py", start.segment.host.v4, 9))
    group.wait_for_log("sending")
    for _ in range(3):
        group.dump(leave_running=True)
    assert "failed" not in group.log()
