"""The network lock: nothing leaves a locked namespace that its peers could take for an answer, and it always goes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt.errors import NetworkError, NotFoundError
from ckpt.kernel import arp, lock, netns
from ckpt.kernel.lock import MARK, NetworkLock, Scope
from tests.net.spaces import shell

HERE, THERE = "10.0.0.1", "10.0.0.2"
HERE6, THERE6 = "fd00::1", "fd00::2"
SECONDS = 20.0


@pytest.fixture
def peers(host: int, group: int) -> int:
    """The group's namespace, with addresses on both sides of the bridge."""
    shell(f"ip addr add {HERE}/24 dev br0; ip addr add {HERE6}/64 dev br0")
    shell(f"ip addr add {THERE}/24 dev eth0; ip addr add {THERE6}/64 dev eth0", group)
    # The first packet must not wait for the carrier, nor a question for an answer.
    for address in (THERE, THERE6):
        assert arp.probe(None, "br0", address, SECONDS) is not None
    return group


class Wire:
    """Everything that comes out of the group's link, as its bridge port sees it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind(("veth0", 3))

    def left(self) -> list[str]:
        """What has left the group so far but ARP and neighbour discovery.

        A question of ours is the fence: its answer comes behind all that was answered before.
        """
        assert arp.probe(None, "br0", THERE, SECONDS) is not None
        found: list[str] = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._socket.recvfrom(2048)
                if address[2] != socket.PACKET_OUTGOING:
                    found += filter(None, [_describe(frame)])
        return found

    def close(self) -> None:
        self._socket.close()


def _describe(frame: bytes) -> str:
    (kind,) = struct.unpack_from(">H", frame, 12)
    body = frame[14:]
    if kind == 0x0806:
        return ""
    protocol, payload = (body[9], body[(body[0] & 15) * 4 :]) if kind == 0x0800 else (body[6], body[40:])
    if protocol == socket.IPPROTO_TCP:
        return "tcp " + "".join(name for bit, name in ((1, "F"), (2, "S"), (4, "R"), (16, "A")) if payload[13] & bit)
    if protocol == socket.IPPROTO_ICMPV6:
        return "" if payload[0] in (135, 136) else f"icmpv6 {payload[0]}"
    return {1: f"icmp {payload[0]}", 17: "udp", 2: "igmp"}.get(protocol, f"protocol {protocol}")


@pytest.fixture
def wire(peers: int) -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def _inside(space: int, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    with netns.entered(space):
        return socket.socket(family, kind)


def provoke() -> None:
    """Everything to which a namespace without an answerer would answer by RST or ICMP."""
    for family, address in ((socket.AF_INET, THERE), (socket.AF_INET6, THERE6)):
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setblocking(False)
            one.connect_ex((address, 9))
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", (address, 9))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 99) as one:
        one.sendto(b"x", (THERE, 0))


def test_without_a_lock_the_kernel_answers(peers: int, wire: Wire) -> None:
    provoke()
    answers = wire.left()
    assert {"tcp RA", "icmp 3", "icmpv6 1"} <= set(answers)


@pytest.mark.parametrize("permanent", [False, True])
def test_close_lets_nothing_leave(peers: int, wire: Wire, permanent: bool) -> None:
    with NetworkLock(peers) as locked:
        locked.close(permanent=permanent)
        wire.left()  # what left before
        provoke()
        # The dying of what the group holds: a connection that is closed, a listener that goes, data that is sent.
        for family, address in ((socket.AF_INET, HERE), (socket.AF_INET6, HERE6)):
            with _inside(peers, family, socket.SOCK_DGRAM) as one, contextlib.suppress(PermissionError):
                one.sendto(b"x", (address, 9))
        assert wire.left() == []


def test_close_silences_a_connection_that_dies(peers: int, wire: Wire) -> None:
    with _inside(peers, socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((THERE, 7))
        listener.listen()
        with socket.create_connection((THERE, 7), timeout=SECONDS) as client:
            server, _ = listener.accept()
            assert "tcp SA" in wire.left()
            with NetworkLock(peers) as locked:
                locked.close(permanent=True)
                wire.left()
                # Unread data makes the kernel send a RST at the end; here it sends it into the lock.
                server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                server.close()
                client.send(b"anybody there?")
                assert wire.left() == []
                listener.close()
                provoke()
                assert wire.left() == []


def test_close_keeps_a_connection_alive(peers: int) -> None:
    with _inside(peers, socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((THERE, 7))
        listener.listen()
        with socket.create_connection((THERE, 7), timeout=SECONDS) as client:
            server, _ = listener.accept()
            with server, NetworkLock(peers) as locked:
                locked.close()
                client.send(b"patience")
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    server.recv(100)
                locked.release()
                server.settimeout(SECONDS)
                assert server.recv(100) == b"patience"


def test_close_lets_packets_with_the_mark_of_criu_pass(peers: int, wire: Wire) -> None:
    with NetworkLock(peers) as locked, _inside(peers, socket.AF_INET, socket.SOCK_DGRAM) as one:
        locked.close()
        wire.left()
        with pytest.raises(PermissionError):
            one.sendto(b"x", (HERE, 9))
        assert wire.left() == []
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        one.sendto(b"x", (HERE, 9))
        assert wire.left() == ["udp"]


@pytest.mark.parametrize("address", [THERE, THERE6])
def test_close_lets_neighbours_be_found(peers: int, address: str) -> None:
    with NetworkLock(peers) as locked:
        locked.close()
        assert arp.probe(None, "br0", address, SECONDS) is not None


def test_close_silences_loopback(peers: int) -> None:
    with NetworkLock(peers) as locked, _inside(peers, socket.AF_INET, socket.SOCK_DGRAM) as one:
        locked.close()
        with pytest.raises(PermissionError):
            one.sendto(b"x", ("127.0.0.1", 9))


def test_close_permanent_takes_the_place_of_an_owned_lock(peers: int) -> None:
    with NetworkLock(peers) as locked:
        locked.close()
        owned, was_owned = locked.names, locked.owned
        locked.close(permanent=True)
        assert (was_owned, locked.owned) == (True, False)
        # The one that it replaces goes with the process that owns it, which is not waited for.
        deadline = time.monotonic() + SECONDS
        while lock.find(peers) != locked.names:
            assert time.monotonic() < deadline, lock.find(peers)
            time.sleep(0.01)
        assert len(locked.names) == 1
        assert locked.names != owned


def test_gate_drops_a_new_connection_and_lets_an_old_one_talk(peers: int, wire: Wire) -> None:
    with _inside(peers, socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((THERE, 7))
        listener.listen()
        with socket.create_connection((THERE, 7), timeout=SECONDS) as client, NetworkLock(peers) as locked:
            server, _ = listener.accept()
            server.settimeout(SECONDS)
            locked.gate()
            wire.left()
            provoke_syn()
            assert [line for line in wire.left() if line.startswith("tcp")] == []
            client.send(b"x")
            assert server.recv(10) == b"x"
            server.close()
            # A connection from inside goes out as before.
            with socket.socket() as outer, _inside(peers, socket.AF_INET, socket.SOCK_STREAM) as inner:
                outer.bind((HERE, 0))
                outer.listen()
                inner.settimeout(SECONDS)
                inner.connect(outer.getsockname())


def provoke_syn() -> None:
    with socket.socket() as one:
        one.setblocking(False)
        one.connect_ex((THERE, 7))


def test_gate_gives_way_to_close(peers: int) -> None:
    with NetworkLock(peers) as locked:
        locked.gate()
        gate = locked.names
        locked.close()
        assert gate != locked.names
        # The gate's holder has been told to end, and nobody waits for it: it drops nothing that the lock lets pass.
        deadline = time.monotonic() + SECONDS
        while lock.find(peers) != locked.names and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.find(peers) == locked.names


def test_release_leaves_nothing(peers: int) -> None:
    locked = NetworkLock(peers)
    locked.gate()
    locked.close()
    locked.close(permanent=True)
    locked.release()
    locked.release()
    assert lock.find(peers) == ()
    assert shell("nft list tables", peers) == ""


_HOLD = """
import os, sys, time
from ckpt.kernel.lock import NetworkLock
locked = NetworkLock(int(sys.argv[1]))
locked.close(permanent=sys.argv[2] == "permanent")
print(*locked.names, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def holder(peers: int) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    """``holder("owned")``: another process that holds a lock, and the name of its table."""
    held: list[subprocess.Popen[str]] = []

    def hold(kind: str) -> tuple[subprocess.Popen[str], str]:
        argv = [sys.executable, "-c", _HOLD, str(peers), kind]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, pass_fds=[peers])
        held.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield hold
    for process in held:
        with process:
            process.kill()


Hold = Callable[[str], tuple[subprocess.Popen[str], str]]


def test_owned_lock_goes_with_its_holder(peers: int, holder: Hold) -> None:
    process, name = holder("owned")
    assert lock.find(peers) == (name,)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while lock.find(peers):
        assert time.monotonic() < deadline, "the lock outlives its holder"
        time.sleep(0.01)


def test_owned_lock_cannot_be_removed_by_another(peers: int, holder: Hold) -> None:
    _, name = holder("owned")
    with pytest.raises(NetworkError) as caught:
        lock.remove(peers, name)
    assert caught.value.code == "lock-remove"
    assert lock.find(peers) == (name,)


def test_permanent_lock_outlives_its_holder_until_it_is_removed(peers: int, holder: Hold) -> None:
    process, name = holder("permanent")
    process.kill()
    process.wait()
    assert lock.find(peers) == (name,)
    lock.remove(peers, name)
    assert lock.find(peers) == ()


@pytest.mark.parametrize("name", ["ckpt-lock-0123abcd", "filter", "ckpt-lock-x; flush ruleset"])
def test_remove_touches_nothing_but_locks(peers: int, name: str) -> None:
    shell("nft add table inet filter", peers)
    with pytest.raises(NotFoundError):
        lock.remove(peers, name)
    assert shell("nft list tables", peers) == "table inet filter\n"


def test_scope_silences_its_own_sockets_and_no_others(peers: int, wire: Wire) -> None:
    listeners = []
    for port in (7, 8):
        listener = _inside(peers, socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((THERE, port))
        listener.listen()
        listeners.append(listener)
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(socket.create_connection((THERE, port), SECONDS)) for port in (7, 8))
        servers = [stack.enter_context(stack.enter_context(one).accept()[0]) for one in listeners]
        scope = Scope(
            connections=((THERE, 7, *ours.getsockname()[:2]),),
            listeners=((THERE, 7),),
            udp_ports=(9,),
        )
        locked = stack.enter_context(NetworkLock(peers, scope=scope))
        locked.close()
        wire.left()
        ours.send(b"x")
        provoke_syn()
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.sendto(b"x", (THERE, 9))
        # Multicast reports of the namespace itself are none of the scope's.
        assert [line for line in wire.left() if line.startswith(("tcp", "udp", "icmp "))] == []
        theirs.send(b"y")
        servers[1].settimeout(SECONDS)
        assert servers[1].recv(10) == b"y"
        with socket.create_connection((THERE, 8), SECONDS):
            pass
        locked.release()
        servers[0].settimeout(SECONDS)
        assert servers[0].recv(10) == b"x"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", THERE6, "::ffff:10.0.0.2"])
def test_scope_takes_every_form_of_address(peers: int, address: str) -> None:
    other = "fd00::9" if address == THERE6 else "::ffff:10.0.0.9"
    scope = Scope(
        connections=((address, 1, other, 2),) if address not in ("0.0.0.0", "::") else (), listeners=((address, 7),)
    )
    with NetworkLock(peers, scope=scope) as locked:
        locked.gate()
        locked.close()
        assert len(locked.names) == 1


def test_close_leaves_no_history_of_nft_behind(peers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    locked = NetworkLock(peers)
    locked.close()
    locked.release()
    assert list(tmp_path.iterdir()) == []
