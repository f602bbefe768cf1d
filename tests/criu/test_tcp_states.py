"""TCP in other states than a connection with empty queues: each comes back as it was, with what was queued."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator

import pytest

from ckpt.kernel.proc import read_tree
from ckpt.kernel.sockdiag import read_sockets
from ckpt.model.socket import Socket
from tests.criu.groups import Group, Starter, wait_for
from tests.criu.segment import run


def sockets(group: Group) -> Iterator[Socket]:
    """The TCP sockets of a group."""
    return (one for one in read_sockets(read_tree(group.pid)) if one.is_tcp)


def connection(group: Group) -> Socket:
    """Its one connection; the client may know of it before the server has accepted it."""
    wait_for(lambda: any(one.holds_connection for one in sockets(group)), "the connection is accepted")
    return next(one for one in sockets(group) if one.holds_connection)


def test_round_trip_client_half_closed_server_goes_on_sending(start: Starter) -> None:
    group = start.stream_server()
    with group.stream() as stream:
        stream.progress()
        stream.finish_writing()
        group.wait_for_log("end of stream after")
        assert connection(group).state == "close_wait"
        group.round_trip()
        assert connection(group).state == "close_wait"
        stream.progress()
        stream.finish()
        assert f"end of stream after {stream.sent} bytes" in group.log()


def test_round_trip_server_half_closed_client_goes_on_sending(start: Starter) -> None:
    group = start.stream_server("--records", 100)
    with group.stream() as stream:
        stream.expect_end(100)
        assert connection(group).state == "fin_wait2"
        group.round_trip()
        assert connection(group).state == "fin_wait2"
        before = stream.sent
        stream.until(lambda: stream.sent > before + 20_000, "the client writes on")
        stream.finish_writing()
        group.wait_for_log("done")
        assert f"end of stream after {stream.sent} bytes" in group.log()


def test_round_trip_data_not_read_by_the_server_arrives_once(start: Starter) -> None:
    group = start.stream_server("--hold", "--buffer", 8192)
    with group.stream() as stream:
        stream.until_stuck_writing()
        assert connection(group).receive_queue > 0
        group.round_trip()
        assert stream.verified_by_server == 0
        group.signal(signal.SIGUSR1)
        stream.progress()
        stream.finish()


def test_round_trip_data_not_read_by_the_client_arrives_once(start: Starter) -> None:
    group = start.stream_server("--buffer", 8192)
    with group.stream(buffer=4096, reading=False, writing=False) as stream:
        stream.until(lambda: connection(group).send_queue > 8192, "the send queue is full")
        group.round_trip()
        assert connection(group).send_queue > 0
        stream.reading = stream.writing = True
        stream.progress()
        stream.finish()


def test_round_trip_both_directions_full_all_arrives_once(start: Starter) -> None:
    group = start.stream_server("--hold", "--buffer", 8192)
    with group.stream(buffer=4096, reading=False) as stream:
        stream.until_stuck_writing()
        stream.until(lambda: connection(group).send_queue > 8192, "the send queue is full")
        group.round_trip()
        stream.reading = True
        group.signal(signal.SIGUSR1)
        stream.progress()
        stream.finish()


def test_round_trip_server_has_closed_with_data_queued_client_gets_all(start: Starter) -> None:
    """FIN_WAIT1: the end of the stream waits behind data that the client has no room for."""
    group = start.stream_server("--records", 4000, "--buffer", 131072)
    with group.stream(buffer=4096, reading=False, writing=False) as stream:
        stream.until(lambda: connection(group).state == "fin_wait1", "the server has shut down")
        group.round_trip()
        assert connection(group).state == "fin_wait1"
        stream.reading = True
        stream.expect_end(4000)


@pytest.mark.parametrize("family", ["v4", "v6", "dual"])
def test_round_trip_listener_keeps_backlog_and_family(start: Starter, family: str) -> None:
    group = start.stream_server("--backlog", 37, "--family", family)
    wanted = {"v4": "0.0.0.0:7000", "v6": "[::]:7000", "dual": "*:7000"}[family]
    assert listeners(group) == [["LISTEN", "0", "37", wanted]]
    group.round_trip()
    assert listeners(group) == [["LISTEN", "0", "37", wanted]]
    for address in group.addresses.v4, group.addresses.v6:
        if family in ("dual", "v6" if ":" in address else "v4"):
            with group.stream(address) as stream:
                stream.progress()
                stream.finish()
        else:
            with group.segment.socket(address, socket.SOCK_STREAM) as client, pytest.raises(ConnectionRefusedError):
                client.connect((address, 7000))


def test_round_trip_connection_on_its_way_is_made_after_the_restore(start: Starter) -> None:
    """SYN_SENT: the group is the client, and its server hears nothing before the restore."""
    with start.segment.listen("10.77.0.2", 7002) as server:
        start.segment.in_client("nft", "add table ip deaf; add chain ip deaf i { type filter hook input priority 0; }")
        start.segment.in_client("nft", "add rule ip deaf i tcp dport 7002 drop")
        script = "import socket; c = socket.create_connection(('10.77.0.2', 7002)); c.sendall(b'hello')"
        script += "; c.sendall(c.recv(9))"
        group = start([sys.executable, "-I", "-S", "-c", script])
        wait_for(lambda: [one.state for one in sockets(group)] == ["syn_sent"], "the group connects")
        group.round_trip()
        assert connection(group).state == "syn_sent"
        start.segment.in_client("nft", "delete table ip deaf")
        accepted, (address, _) = server.accept()
        with accepted:
            assert (accepted.recv(16), address) == (b"hello", group.addresses.v4)
            group.round_trip()
            accepted.sendall(b"echo")
            assert accepted.recv(16) == b"echo"


def listeners(group: Group) -> list[list[str]]:
    """State, queue, backlog and address of each listener, in the words of ss."""
    lines = run("nsenter", f"--net=/proc/{group.pid}/ns/net", "ss", "-Hltn").splitlines()
    return [line.split()[:4] for line in lines]
