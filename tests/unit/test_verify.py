"""Sockets of an image held against restored ones: what must be equal, and what may differ."""

from __future__ import annotations

import dataclasses

import pytest

from ckpt.model.socket import Endpoint, Owner, Socket, SocketOptions
from ckpt.verify import compare
from tests.unit.group_facts import socket

PEER = Endpoint(address="10.0.0.9", port=5000)


def connection(**changes: object) -> Socket:
    return socket(**{"state": "established", "remote": PEER, "backlog": None, "accept_queue": None, **changes})


def pair(inodes: tuple[int, int], fds: tuple[int, int] = (4, 5)) -> tuple[Socket, Socket]:
    """Two unix sockets that face each other."""
    ends = zip(inodes, reversed(inodes), fds, strict=True)
    first, second = (
        socket(
            family="unix",
            protocol=0,
            state="established",
            local=None,
            backlog=None,
            inode=inode,
            peer=peer,
            owners=(Owner(pid=71, fd=fd, ns_pid=1),),
        )
        for inode, peer, fd in ends
    )
    return first, second


def test_compare_same_sockets_with_other_inodes_and_pids_finds_nothing() -> None:
    image = socket(owners=(Owner(pid=71, fd=3, ns_pid=1),))
    live = socket(inode=900, netns=1, accept_queue=4, owners=(Owner(pid=4711, fd=3, ns_pid=1),))
    assert compare((image, *pair((10, 11))), (live, *pair((20, 21)))) == ()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"state": "close"}, "state is close instead of established"),
        ({"remote": None}, "remote is none instead of 10.0.0.9:5000"),
        ({"local": Endpoint(address="10.0.0.3", port=80)}, "local is 10.0.0.3:80 instead of 10.0.0.2:80"),
        ({"device": "eth0"}, "device is eth0 instead of none"),
        ({"type": "dgram"}, "type is dgram instead of stream"),
        ({"protocol": 262}, "protocol is 262 instead of 6"),
        ({"options": SocketOptions(freebind=True)}, "freebind is True instead of none"),
    ],
)
def test_compare_names_what_differs(changes: dict[str, object], difference: str) -> None:
    found = compare((connection(),), (connection(**changes),))
    assert difference in [one.partition(": ")[2] for one in found]


def test_compare_missing_descriptor_is_named() -> None:
    assert compare((connection(),), ()) == ("PID 71, fd 3 (inet stream 10.0.0.2:80 to 10.0.0.9:5000) is missing",)


def test_compare_shared_socket_that_became_two_is_named() -> None:
    owners = (Owner(pid=71, fd=3, ns_pid=71), Owner(pid=72, fd=3, ns_pid=72))
    live = (socket(owners=owners[:1]), socket(inode=501, owners=owners[1:]))
    (difference,) = compare((socket(owners=owners),), live)
    assert difference == "PID 71, fd 3 (inet stream 10.0.0.2:80) was one socket and is several"


def test_compare_unix_sockets_connected_crosswise_are_named() -> None:
    ends = (*pair((10, 11)), *pair((12, 13), (6, 7)))
    crossed = tuple(dataclasses.replace(one, peer=peer) for one, peer in zip(ends, (13, 12, 11, 10), strict=True))
    assert len(compare(ends, crossed)) == 4


@pytest.mark.parametrize(
    ("before", "now"), [("fin_wait1", "fin_wait2"), ("close_wait", "last_ack"), ("closing", "close")]
)
def test_compare_connection_that_is_closing_may_go_on(before: str, now: str) -> None:
    assert compare((connection(state=before),), (connection(state=now),)) == ()


def test_compare_with_tcp_close_wants_connections_closed() -> None:
    closed = connection(state="close", remote=None)
    assert compare((connection(),), (closed,), tcp_close=True) == ()
    assert compare((connection(),), (connection(),), tcp_close=True) != ()
    assert compare((socket(),), (socket(state="close"),), tcp_close=True) != ()
