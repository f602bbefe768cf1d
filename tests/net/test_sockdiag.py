"""What is read of sockets, in a namespace made for it: states, queues, options, and that reading changes nothing."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from ckpt.kernel import netns, run, sockdiag
from ckpt.kernel.files import FileReader
from ckpt.kernel.procfs import read_process
from ckpt.model.process import Process
from ckpt.model.socket import Endpoint, Socket

Make = Callable[..., socket.socket]


@pytest.fixture
def inside() -> Iterator[int]:
    """A fresh namespace with lo up."""
    fd = netns.create()
    try:
        run.run(["ip", "link", "set", "lo", "up"], netns=fd)
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def make(inside: int) -> Iterator[Make]:
    """Makes sockets of the namespace, and closes them."""
    with contextlib.ExitStack() as stack:

        def made(*arguments: int) -> socket.socket:
            with netns.entered(inside):
                return stack.enter_context(socket.socket(*arguments))

        yield made


def this_process() -> Process:
    process = read_process(os.getpid(), FileReader())
    assert process is not None
    return process


def read(one: socket.socket) -> Socket:
    inode = os.fstat(one.fileno()).st_ino
    (found,) = (record for record in sockdiag.read_sockets([this_process()]) if record.inode == inode)
    return found


def connect(make: Make, family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket, socket.socket]:
    """A listener, a client, and what the listener has accepted."""
    listener, client = make(family), make(family)
    listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    listener.listen(7)
    client.connect(listener.getsockname())
    return listener, client, listener.accept()[0]


def test_read_sockets_listener_has_its_backlog_and_queue(make: Make, inside: int) -> None:
    listener, client = make(), make()
    listener.bind(("127.0.0.1", 0))
    listener.listen(7)
    port = listener.getsockname()[1]
    client.connect(("127.0.0.1", port))
    found = read(listener)
    assert (found.state, found.backlog, found.accept_queue) == ("listen", 7, 1)
    assert (found.local, found.remote) == (Endpoint(address="127.0.0.1", port=port), None)
    assert found.netns == netns.inode(inside)
    assert (os.getpid(), listener.fileno()) in {(owner.pid, owner.fd) for owner in found.owners}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_read_sockets_connection_counts_its_queued_bytes(make: Make, family: int) -> None:
    _, client, server = connect(make, family)
    with server:
        client.sendall(b"x" * 1234)
        select.select([server], [], [])
        found = read(server)
        assert (found.state, found.receive_queue, found.send_queue) == ("established", 1234, 0)
        assert found.remote is not None
        assert found.remote.port == client.getsockname()[1]
        assert found.holds_connection
        # reading has taken nothing away, and kept nothing open
        assert server.recv(2000) == b"x" * 1234
    select.select([client], [], [])
    assert client.recv(1) == b""


def test_read_sockets_half_closed_connection_tells_both_sides(make: Make) -> None:
    _, client, server = connect(make)
    with server:
        client.shutdown(socket.SHUT_WR)
        select.select([server], [], [])
        assert read(server).state == "close_wait"
        deadline = time.monotonic() + 10
        while read(client).state == "fin_wait1" and time.monotonic() < deadline:
            time.sleep(0.01)  # the acknowledgement is under way
        assert read(client).state == "fin_wait2"


def test_read_sockets_keeps_a_pending_error_for_the_program(make: Make) -> None:
    udp = make(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 9))
    udp.send(b"nobody listens")
    select.select([udp], [], [])
    read(udp)
    assert udp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def test_read_sockets_options_are_the_sockets_own(make: Make) -> None:
    one = make(socket.AF_INET6)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4321)
    found = read(one)
    assert found.device == "lo"
    assert (found.options.reuse_address, found.options.reuse_port) == (True, False)
    assert (found.options.v6only, found.options.user_timeout) == (True, 4321)
    assert (found.family, found.type, found.protocol, found.state) == ("inet6", "stream", 6, "close")


def test_read_sockets_udp_queue_and_multicast_groups(make: Make) -> None:
    receiver, sender = make(socket.AF_INET, socket.SOCK_DGRAM), make(socket.AF_INET, socket.SOCK_DGRAM)
    member = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    receiver.bind(("127.0.0.1", 0))
    sender.sendto(b"unread", receiver.getsockname())
    select.select([receiver], [], [])
    found = read(receiver)
    assert found.groups == ("239.1.2.3%lo",)
    assert found.receive_queue > 0
    assert read(sender).groups == ()
    # an IPv6 socket is asked in its own family
    six = make(socket.AF_INET6, socket.SOCK_DGRAM)
    index = struct.pack("=I", 1)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::1234") + index)
    assert read(six).groups == ("ff02::1234%lo",)


def test_read_sockets_unix_pair_faces_each_other() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert read(one).peer == read(other).inode
        assert (read(one).family, read(one).state, read(one).path) == ("unix", "established", None)


def test_read_sockets_unix_listener_lists_who_waits() -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(b"\0ckpt-" + os.urandom(6).hex().encode())
        listener.listen(5)
        client.connect(listener.getsockname())
        found = read(listener)
        assert found.path is not None
        assert found.path.startswith("@ckpt-")
        assert (found.state, found.backlog, found.accept_queue) == ("listen", 5, 1)
        assert found.pending == (read(client).inode,)


def test_accept_queue_counts_until_accepted(make: Make, inside: int) -> None:
    listener, client = make(), make()
    listener.bind(("127.0.0.1", 0))
    listener.listen(7)
    assert sockdiag.accept_queue(inside) == 0
    client.connect(listener.getsockname())
    assert sockdiag.accept_queue(inside) == 1
    with listener.accept()[0]:
        assert sockdiag.accept_queue(inside) == 0


def test_read_orphans_finds_a_connection_closed_before_its_data_was_taken(make: Make, inside: int) -> None:
    _, client, server = connect(make)
    assert sockdiag.read_orphans(inside) == ()
    with server:
        address = client.getsockname()
        client.close()
        (orphan,) = sockdiag.read_orphans(inside)
        assert orphan.local == Endpoint(address=address[0], port=address[1])
        assert orphan.state in ("fin_wait1", "fin_wait2")
        assert orphan.owners == ()


def test_read_sockets_of_a_process_that_closes_meanwhile_leaves_them_out(make: Make) -> None:
    one = make()
    process = this_process()
    inode = os.fstat(one.fileno()).st_ino
    one.close()
    assert inode not in {record.inode for record in sockdiag.read_sockets([process])}
