"""Every kind of socket of a context, dumped and restored: it is called as before, works, and nobody takes its port."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack

import pytest

from ckpt.kernel import context as kernel
from ckpt.kernel import context_books
from tests.criu.context_groups import ROUNDS, Agent, agent
from tests.criu.groups import Starter
from tests.criu.segment import Addresses

V4, V6, TCP, UDP = "AF_INET", "AF_INET6", "SOCK_STREAM", "SOCK_DGRAM"
SHARED = "setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)"
ONLY6 = "setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)"
BOTH = "setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)"


@pytest.fixture
def pairs(start: Starter) -> tuple[Addresses, Addresses]:
    return start.segment.addresses(), start.segment.addresses()


@pytest.fixture
def one(start: Starter, stack: ExitStack, pairs: tuple[Addresses, Addresses]) -> Agent:
    """A group in a context of two pairs of addresses."""
    return agent(start, stack, *pairs)


def fill(one: Agent, first: Addresses, second: Addresses) -> list[str]:
    """Sockets of every kind; their names."""
    kinds = {
        "any4": (V4, TCP, "bind(('', 81))", "listen()"),
        "any6": (V6, TCP, ONLY6, "bind(('::', 82))", "listen()"),
        "dual": (V6, TCP, BOTH, "bind(('::', 83))", "listen()"),
        "plain4": (V4, TCP, f"bind(('{second.v4}', 84))", "listen()"),
        "plain6": (V6, TCP, f"bind(('{second.v6}', 84))", "listen()"),
        "mapped": (V6, TCP, BOTH, f"bind(('::ffff:{second.v4}', 85))", "listen()"),
        "shared1": (V4, TCP, SHARED, "bind(('', 86))", "listen()"),
        "shared2": (V4, TCP, SHARED, "bind(('', 86))", "listen()"),
        "own4": (V4, TCP, "bind(('127.0.0.1', 87))", "listen()"),
        "own6": (V6, TCP, "bind(('::1', 87))", "listen()"),
        "idle": (V4, TCP, "bind(('', 88))"),
        "udp4": (V4, UDP, "bind(('', 81))"),
        "udp6": (V6, UDP, ONLY6, "bind(('::', 82))"),
        "udpdual": (V6, UDP, BOTH, "bind(('::', 83))"),
        "udpplain": (V4, UDP, f"bind(('{second.v4}', 84))"),
        "udpown": (V4, UDP, "bind(('127.0.0.1', 87))"),
        "sender": (V4, UDP, "connect(('127.0.0.1', 87))"),
        "away": (V4, UDP, "connect(('10.77.0.2', 9))"),
        "anyaway4": (V4, UDP, "bind(('', 91))", "connect(('10.77.0.2', 9))"),
        "anyaway6": (V6, UDP, ONLY6, "bind(('::', 92))", "connect(('fd77::2', 9))"),
        "anyawaydual": (V6, UDP, BOTH, "bind(('::', 93))", "connect(('::ffff:10.77.0.2', 9))"),
        "client4": (V4, TCP, "connect(('127.0.0.1', 87))"),
        "client6": (V6, TCP, "connect(('::1', 87))"),
        "unbound": (V4, TCP),
    }
    for name, (family, kind, *steps) in kinds.items():
        one.make(name, family, kind, *steps)
    assert one.do("served4 = own4.accept()[0]") is None
    assert one.do("served6 = own6.accept()[0]") is None
    return [*kinds, "served4", "served6"]


def test_round_trips_every_socket_keeps_its_name(one: Agent, pairs: tuple[Addresses, Addresses]) -> None:
    names = fill(one, *pairs)
    before = one.names(*names)
    assert before["any4"][0] == ["0.0.0.0", 81]
    assert before["dual"][0][:2] == ["::", 83]
    assert before["client4"][1] == ["127.0.0.1", 87]
    for number in range(10):
        one.group.round_trip()
        assert one.names(*names) == before, f"after {number + 1} round trips"
        one.do(f"client4.sendall(b'{number}')")
        assert one.do("served4.recv(9).decode()") == str(number)
        one.do(f"served6.sendall(b'{number}')")
        assert one.do("client6.recv(9).decode()") == str(number)
        one.do(f"sender.send(b'{number}')")
        assert one.do("udpown.recv(9).decode()") == str(number)


def reach(segment_socket: socket.socket, address: str, port: int) -> str:
    try:
        segment_socket.settimeout(10)
        segment_socket.connect((address, port))
    except ConnectionRefusedError:
        return "refused"
    return "there"


def test_restored_listeners_answer_on_their_addresses_alone(
    start: Starter, one: Agent, stack: ExitStack, pairs: tuple[Addresses, Addresses]
) -> None:
    fill(one, *pairs)
    first, second = pairs

    def seen() -> dict[tuple[str, int], str]:
        found = {}
        for address in (first.v4, first.v6, second.v4, second.v6):
            for port in (81, 82, 83, 84, 85, 86, 87):
                client = stack.enter_context(start.segment.socket(address, socket.SOCK_STREAM))
                found[address, port] = reach(client, address, port)
        return found

    def accept_all() -> None:
        """What the client has opened waits to be accepted, and would be in flight."""
        for name in ("any4", "any6", "dual", "plain4", "plain6", "mapped", "shared1", "shared2"):
            one.do(f"{name}.settimeout(0.2)")
            while one.do(f"held = globals().setdefault('held', []); held.append({name}.accept())") is None:
                pass

    before = seen()
    assert [before[address, 81] for address in (first.v4, second.v4, first.v6)] == ["there", "there", "refused"]
    assert [before[address, 83] for address in (first.v4, second.v4, first.v6)] == ["there", "there", "there"]
    for _ in range(ROUNDS):
        accept_all()
        one.group.round_trip()
        assert seen() == before


def test_restored_datagrams_come_to_every_address(
    start: Starter, one: Agent, stack: ExitStack, pairs: tuple[Addresses, Addresses]
) -> None:
    fill(one, *pairs)
    for _ in range(ROUNDS):
        one.group.round_trip()
        for pair in pairs:
            for name, address, port in (("udp4", pair.v4, 81), ("udp6", pair.v6, 82), ("udpdual", pair.v6, 83)):
                client = stack.enter_context(start.segment.socket(address, socket.SOCK_DGRAM))
                client.settimeout(10)
                question = secrets.token_bytes(1000)
                client.sendto(question, (address, port))
                one.do(f"data, peer = {name}.recvfrom(9999)")
                one.do(f"{name}.sendto(data, peer)")
                assert client.recv(9999) == question


def test_books_are_rebuilt_and_later_binds_are_refused(
    start: Starter, one: Agent, stack: ExitStack, pairs: tuple[Addresses, Addresses]
) -> None:
    """The second address of the first context is the only one of another."""
    other = agent(start, stack, pairs[1], port=7101)
    fill(one, *pairs)
    before = books(one)
    assert before

    def refused() -> list[str]:
        taken = [
            (V4, TCP, 81),
            (V6, TCP, 82),
            (V4, TCP, 83),
            (V6, TCP, 83),
            (V4, TCP, 86),
            (V4, UDP, 81),
            (V6, UDP, 83),
            (V4, UDP, 91),
            (V6, UDP, 92),
            (V6, UDP, 93),
        ]
        found = []
        for family, kind, port in taken:
            other.make("probe", family, kind)
            found.append(other.do(f"probe.bind(('', {port}))"))
            other.do("probe.close()")
        return found

    assert refused() == ["EADDRINUSE"] * 10
    for _ in range(ROUNDS):
        one.group.round_trip()
        # A port that the kernel had chosen for a connected UDP socket is booked as well now: CRIU has bound it.
        assert set(before) <= set(books(one))
        assert refused() == ["EADDRINUSE"] * 10
    one.do("any4.close()")
    other.make("probe", V4, TCP, "bind(('', 81))")


def books(one: Agent) -> list[str]:
    """What the books have of the group that waits for somebody, by the names of the host."""
    entry = kernel.read(str(one.group.target))
    own = (entry.loopback4, entry.loopback6)
    return sorted(
        f"{claim.protocol} {claim.address} {claim.port} {claim.wild} {claim.primary} ×{claim.sockets}"
        for claim in context_books.claims()
        if claim.number == entry.number and claim.address not in own
    )


def test_restored_group_is_as_confined_as_before(
    start: Starter, one: Agent, pairs: tuple[Addresses, Addresses]
) -> None:
    one.group.round_trip()
    one.make("probe", V4, TCP)
    assert one.do(f"probe.bind(('{start.segment.host.v4}', 90))") == "EADDRNOTAVAIL"
    one.make("sender", V4, UDP, "connect(('10.77.0.2', 9))")
    assert one.do("sender.getsockname()[0]") == pairs[0].v4
