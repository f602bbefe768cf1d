"""IP-set contexts, semantics by semantics: real sockets in processes of their own, and a peer in another namespace.

Each case is a cell of the table, or several: TCP and UDP, sockets of IPv4, of IPv6 alone, of IPv6 with mapped
addresses, and dual-stack ones; bound to an address, to `*`, or to the loopback address.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.kernel import context, context_places
from ckpt.model.context import Context
from tests.net import cells, context_lab
from tests.net.cells import FAMILIES, PROTOCOLS, shows
from tests.net.context_lab import PEER, Agent, Lab, ip

PORT = 8080
"""Another one for each test: what the one before has in TIME_WAIT would be in the way."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with context_lab.lab(tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture(scope="module")
def one(place: Lab) -> Context:
    """Two addresses of each family."""
    return place.context(ip("first", 4), ip("second", 4), ip("first", 6), ip("second", 6))


@pytest.fixture(scope="module")
def other(place: Lab) -> Context:
    """One address of each family, in the subnet of the first ones."""
    return place.context(ip("other", 4), ip("other", 6))


@pytest.fixture(autouse=True)
def _nothing_is_booked(place: Lab) -> Iterator[None]:
    global PORT
    PORT += 2
    yield
    place.end_agents()
    assert place.books() == []


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest) -> None:
    """What the end of the session counts, if the test passes."""
    test = request.node
    if hasattr(test, "callspec"):
        test.user_properties += [(cells.KEY, cell) for cell in cells.of(test.function, test.callspec.params)]


def make(protocol: str, family: str, name: str = "s") -> str:
    """Code that makes a socket."""
    made = f"{name} = socket.socket(socket.{'AF_INET' if family == 'v4' else 'AF_INET6'}, {kind(protocol)})"
    if family == "v4":
        return made
    return f"{made}; {name}.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, {family == 'v6'})"


def written(address: str, family: str) -> str:
    """An address as a socket of that family takes it."""
    return f"::ffff:{address}" if family == "mapped" else address


def version(family: str) -> int:
    return 6 if family in ("v6", "dual") else 4


def plain_loopback(family: str) -> str:
    """The loopback address as a client has it that is no dual-stack one."""
    return "127.0.0.1" if version(family) == 4 else "::1"


LOOPBACK = {"v4": "127.0.0.1", "v6": "::1", "mapped": "::ffff:127.0.0.1", "dual": "::1"}
ANY = {"v4": "0.0.0.0", "v6": "::", "mapped": "::ffff:0.0.0.0", "dual": "::"}


def serve(agent: Agent, protocol: str, family: str, address: str, *, options: str = "", name: str = "s") -> None:
    """Bind a socket, and let TCP listen."""
    agent.do(make(protocol, family, name))
    if options:
        agent.do(options)
    agent.do(f"{name}.bind(({address!r}, {PORT}))")
    if protocol == "tcp":
        agent.do(f"{name}.listen()")


def reaches(client: Agent, server: Agent, protocol: str, address: str, name: str = "s") -> tuple[str, str]:
    """Send a word to ``address``; the client's address as the server has it, and the server's own as it sees it."""
    client.do(f"c = socket.socket(socket.{'AF_INET6' if ':' in address else 'AF_INET'}, {kind(protocol)})")
    if protocol == "udp":
        client.do(f"c.sendto(b'word', ({address!r}, {PORT}))")
        word, peer = server.do(f"{name}.recvfrom(100)")
        assert word == "word"
        server.do(f"{name}.sendto(b'answer', {tuple(peer)!r})")
        assert client.do("c.recv(100)") == "answer"
        return peer[0], server.do(f"{name}.getsockname()")[0]
    client.do(f"c.connect(({address!r}, {PORT}))")
    server.do(f"a, p = {name}.accept()")
    server.do("a.sendall(b'answer')")
    assert client.do("c.recv(100)") == "answer"
    local, peer = server.do("[a.getsockname()[0], p[0]]")
    client.do("shown = [c.getsockname()[0], c.getpeername()[:2]]; c.close()")
    server.do("a.close()")
    return peer, local


def kind(protocol: str) -> str:
    return "socket.SOCK_STREAM" if protocol == "tcp" else "socket.SOCK_DGRAM"


def refuses(client: Agent, protocol: str, address: str) -> str:
    """The errno with which a client finds nobody at ``address``."""
    client.do(f"c = socket.socket(socket.{'AF_INET6' if ':' in address else 'AF_INET'}, {kind(protocol)})")
    connecting = client.fails(f"c.connect(({address!r}, {PORT}))")
    if protocol == "tcp" or connecting:
        return connecting
    client.do("c.send(b'word')")
    return client.fails("c.recv(100)")


# -- 2: binding --------------------------------------------------------------------------------------------------------


@shows("specific", 2)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bind_to_an_address_outside_the_set_is_refused(place: Lab, one: Context, protocol: str, family: str) -> None:
    agent = place.inside(one)
    agent.do(make(protocol, family))
    for which in ("other", "free"):
        assert agent.fails(f"s.bind(({written(ip(which, version(family)), family)!r}, {PORT}))") == "EADDRNOTAVAIL"
    agent.do(f"s.bind(({written(ip('second', version(family)), family)!r}, {PORT}))")


@shows("specific", 3, 6)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_specific_bind_is_seen_as_it_was_asked_and_reached_nowhere_else(
    place: Lab, one: Context, protocol: str, family: str
) -> None:
    agent, own, peer = place.inside(one), place.inside(one), place.at_peer()
    for which, other in (("first", "second"), ("second", "first")):
        address = ip(which, version(family))
        serve(agent, protocol, family, written(address, family))
        assert refuses(peer, protocol, ip(other, version(family))) == "ECONNREFUSED"
        assert refuses(own, protocol, plain_loopback(family)) == "ECONNREFUSED"
        assert agent.do("s.getsockname()")[:2] == [written(address, family), PORT]
        source, local = reaches(peer, agent, protocol, address)
        assert local == written(address, family)
        assert source == written(ip("near" if which == "first" else "second", version(family), PEER), family)
        agent.do("s.close()")


def answers_on(family: str) -> list[tuple[str, int]]:
    """The addresses of `one` that a `*` of that family means."""
    versions = {"v4": (4,), "mapped": (4,), "v6": (6,), "dual": (4, 6)}[family]
    return [(which, number) for which in ("first", "second") for number in versions]


@shows("any", 3)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_is_every_address_of_the_set_and_no_other(
    place: Lab, one: Context, other: Context, protocol: str, family: str
) -> None:
    server, second, host, peer = place.inside(one), place.inside(other), place.unconfined(), place.at_peer()
    address = ANY[family]
    serve(server, protocol, family, address)
    assert server.do("s.getsockname()")[:2] == [address, PORT]
    serve(second, protocol, family, address)  # the same port, in another context
    serve(host, protocol, "v4", ip("free", 4))  # and beside both on the host
    for client in (peer, host):
        for which, number in answers_on(family):
            wanted = ip(which, number)
            shown = f"::ffff:{wanted}" if family != "v4" and number == 4 else wanted
            _, local = reaches(client, server, protocol, wanted)
            assert local == (shown if protocol == "tcp" else address)
        for number in sorted({number for _, number in answers_on(family)}):
            reaches(client, second, protocol, ip("other", number))
    reaches(peer, host, protocol, ip("free", 4))
    assert refuses(peer, protocol, ip("free2", 4)) == "ECONNREFUSED"


@shows("any", 2)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("holder", ["same", "sharing", "unconfined"])
def test_any_fails_as_a_whole_when_one_address_is_taken(
    place: Lab, one: Context, protocol: str, family: str, holder: str
) -> None:
    """Taken by a socket of the same context, of another one that has the address as well, or of nobody's."""
    which, number = answers_on(family)[-1]
    if holder == "unconfined":
        taker = place.unconfined()
    else:
        taker = place.inside(one if holder == "same" else place.context(ip(which, number)))
    serve(taker, protocol, f"v{number}", ip(which, number))
    before = place.books()
    agent = place.inside(one)
    agent.do(make(protocol, family))
    assert agent.fails(f"s.bind(({ANY[family]!r}, {PORT}))") == "EADDRINUSE"
    assert place.books() == before
    taker.do("s.close()")
    agent.do(f"s.bind(({ANY[family]!r}, {PORT}))")


@shows("any", 2)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_specific_bind_fails_where_any_is_bound(place: Lab, one: Context, protocol: str, family: str) -> None:
    holder, agent = place.inside(one), place.inside(one)
    serve(holder, protocol, family, ANY[family])
    for which, number in answers_on(family):
        agent.do(make(protocol, f"v{number}"))
        assert agent.fails(f"s.bind(({ip(which, number)!r}, {PORT}))") == "EADDRINUSE"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_without_a_port_gets_one_and_answers_on_every_address(place: Lab, one: Context, protocol: str) -> None:
    agent, peer = place.inside(one), place.at_peer()
    agent.do(make(protocol, "v4"))
    agent.do("s.bind(('', 0))")
    if protocol == "tcp":
        agent.do("s.listen()")
    port = agent.do("s.getsockname()")[1]
    for which in ("first", "second"):
        peer.do(f"c = socket.socket(socket.AF_INET, {kind(protocol)}); c.connect(({ip(which, 4)!r}, {port}))")
        peer.do("c.send(b'x')")
        assert agent.do("s.accept()[0].recv(9)" if protocol == "tcp" else "s.recv(9)") == "x"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reuseport_group_is_one_on_every_address(place: Lab, one: Context, protocol: str) -> None:
    agent, second, peer = place.inside(one), place.inside(one), place.at_peer()
    share = "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)"
    serve(agent, protocol, "v4", "", options=share)
    serve(second, protocol, "v4", "", options=share)
    stranger = place.inside(one)
    stranger.do(make(protocol, "v4"))
    assert stranger.fails(f"s.bind(('', {PORT}))") == "EADDRINUSE"
    for who in (agent, second):
        who.do("s.setblocking(False)")
    for which in ("first", "second"):
        for _ in range(40):
            peer.do(f"c = socket.socket(type={kind(protocol)})")
            peer.do(f"c.connect(({ip(which, 4)!r}, {PORT})); c.send({which.encode()!r}); c.close()")
        counts = [who.do(_TAKE_ALL) or who.do("len(got)") for who in (agent, second)]
        assert sum(counts) == 40
        assert all(counts), counts
    agent.do("s.close()")  # the other one goes on alone
    second.do("s.setblocking(True); s.settimeout(5)")
    for which in ("first", "second"):
        reaches(peer, second, protocol, ip(which, 4))


_TAKE_ALL = """
got = []
while True:
    try:
        got.append(s.accept() if s.type == socket.SOCK_STREAM else s.recv(9))
    except BlockingIOError:
        break
"""


@pytest.mark.parametrize("option", ["SO_REUSEADDR", "SO_REUSEPORT"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ports_are_shared_as_they_are_outside(place: Lab, one: Context, protocol: str, option: str) -> None:
    """Each has the option, has it not, or has it no more; the first listens or does not."""

    def outcomes(agent: Agent, address: str) -> list[str]:
        found = []
        for first, second, listening in itertools.product((1, 0), ((1,), (), (1, 0)), (False, protocol == "tcp")):
            agent.do(make(protocol, "v4", "a") + f"; a.setsockopt(socket.SOL_SOCKET, socket.{option}, {first})")
            agent.do(f"a.bind(({address!r}, {PORT})); {'a.listen()' if listening else ''}")
            agent.do(make(protocol, "v4", "b"))
            for value in second:
                agent.do(f"b.setsockopt(socket.SOL_SOCKET, socket.{option}, {value})")
            found.append(agent.fails(f"b.bind(({address!r}, {PORT}))"))
            agent.do("a.close(); b.close()")
        return found

    expected = outcomes(place.unconfined(), ip("free", 4))
    assert set(expected) == {"", "EADDRINUSE"}
    for address in (ip("first", 4), ""):
        assert outcomes(place.inside(one), address) == expected


# -- 4: sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["tcp", "udp-connect", "udp-send"])
def test_source_is_of_the_set_same_subnet_first(place: Lab, one: Context, way: str, family: str) -> None:
    agent, peer = place.inside(one), place.at_peer()
    protocol = way[:3]
    for which, expected in (("near", "first"), ("second", "second"), ("far", "first")):
        number = version(family)
        serve(peer, protocol, f"v{number}", ip(which, number, PEER))
        agent.do(make(protocol, family, "c"))
        target = (written(ip(which, number, PEER), family), PORT)
        agent.do(f"c.sendto(b'x', {target!r})" if way == "udp-send" else f"c.connect({target!r})")
        if way == "udp-connect":
            agent.do("c.send(b'x')")
        source = peer.do("s.accept()[1]" if protocol == "tcp" else "s.recvfrom(9)[1]")[0]
        assert source == ip(expected, number)
        if way != "udp-send":
            assert agent.do("c.getsockname()")[0] == written(source, family)
            assert agent.do("c.getpeername()")[:2] == list(target)
        peer.do("s.close()")


@shows("specific", 4)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_source_that_the_program_chose_is_kept(place: Lab, one: Context, protocol: str, family: str) -> None:
    agent, peer = place.inside(one), place.at_peer()
    number = version(family)
    serve(peer, protocol, f"v{number}", ip("near", number, PEER))
    agent.do(make(protocol, family, "c"))
    agent.do(f"c.bind(({written(ip('second', number), family)!r}, 0))")
    agent.do(f"c.connect(({written(ip('near', number, PEER), family)!r}, {PORT})); c.send(b'x')")
    source = peer.do("s.accept()[1]" if protocol == "tcp" else "s.recvfrom(9)[1]")[0]
    assert source == ip("second", number)


@shows("any", 4)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_socket_bound_to_any_connects_from_the_first_address(
    place: Lab, one: Context, protocol: str, family: str
) -> None:
    agent, peer, server = place.inside(one), place.at_peer(), place.inside(one)
    number = 6 if family == "v6" else 4
    via = "mapped" if family == "dual" else family
    serve(peer, protocol, f"v{number}", ip("second", number, PEER))
    serve(server, protocol, via, LOOPBACK[via])
    for target, reached in ((written(ip("second", number, PEER), via), peer), (LOOPBACK[via], server)):
        agent.do(make(protocol, family, "c"))
        agent.do(f"c.bind(({ANY[family]!r}, 0)); c.connect(({target!r}, {PORT})); c.send(b'x')")
        source = reached.do("s.accept()[1]" if protocol == "tcp" else "s.recvfrom(9)[1]")[0]
        assert source.removeprefix("::ffff:") == ip("first", number)
        assert agent.do("c.getsockname()[0]") == written(ip("first", number), via)
        if protocol == "udp" and reached is peer:  # and the answer comes to it
            peer.do(f"s.sendto(b'answer', ({source!r}, {agent.do('c.getsockname()[1]')}))")
            assert agent.do("c.recv(9)") == "answer"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dual_stack_socket_bound_to_any_does_not_connect_to_ipv6(place: Lab, one: Context, protocol: str) -> None:
    """It is bound to a mapped address, which the kernel will not have beside another kind. Sending is as elsewhere."""
    agent, peer = place.inside(one), place.at_peer()
    target = (ip("second", 6, PEER), PORT)
    serve(peer, protocol, "v6", target[0])
    agent.do(make(protocol, "dual", "c"))
    agent.do("c.bind(('::', 0))")
    assert agent.fails(f"c.connect({target!r})") == "EAFNOSUPPORT"
    if protocol == "udp":
        agent.do(f"c.sendto(b'x', {target!r})")
        assert peer.do("s.recvfrom(9)")[1][0] == ip("second", 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_connection_to_an_own_address_comes_from_it(place: Lab, one: Context, family: str) -> None:
    server, agent = place.inside(one), place.inside(one)
    number = version(family)
    serve(server, "tcp", "v4" if family == "v4" else "dual", "" if family == "v4" else "::")
    for which in ("first", "second"):
        address = written(ip(which, number), family)
        agent.do(make("tcp", family, "c"))
        agent.do(f"c.connect(({address!r}, {PORT}))")
        assert agent.do("c.getsockname()")[0] == address
        assert server.do("s.accept()[1]")[0] == address


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_datagram_socket_on_any_answers_from_the_subnet_of_the_client(place: Lab, one: Context, family: str) -> None:
    agent, peer = place.inside(one), place.at_peer()
    number = version(family)
    serve(agent, "udp", family, ANY[family])
    for which, expected in (("near", "first"), ("second", "second")):
        serve(peer, "udp", family, ip(which, number, PEER))
        agent.do(f"s.sendto(b'x', ({ip(which, number, PEER)!r}, {PORT}))")
        assert peer.do("s.recvfrom(9)")[1][0] == ip(expected, number)
        peer.do("s.close()")


@pytest.mark.parametrize("family", ["v4", "v6", "dual"])
def test_datagram_in_fragments_arrives_on_every_address(place: Lab, one: Context, family: str) -> None:
    agent, peer, other = place.inside(one), place.at_peer(), place.inside(one)
    serve(agent, "udp", family, ANY[family])
    for number in {"v4": (4,), "v6": (6,), "dual": (4, 6)}[family]:
        for which in ("second", "first", "second"):
            peer.do(make("udp", f"v{number}", "c"))
            peer.do(f"c.sendto(b'x' * 9000, ({ip(which, number)!r}, {PORT}))")
            assert agent.do("len(s.recv(65536))") == 9000
    # and those that are whole go on as before
    assert reaches(peer, agent, "udp", ip("second", 6 if family == "v6" else 4))
    agent.do("s.close()")
    other.do(make("udp", "dual"))
    other.do(f"s.bind(('::', {PORT}))")


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_datagram_answer_with_a_chosen_source_has_it(place: Lab, one: Context, family: str) -> None:
    """A server that asks where a datagram came in (IP_PKTINFO) answers from there, from the first address too."""
    agent, peer = place.inside(one), place.at_peer()
    number = version(family)
    level, option = ("socket.IPPROTO_IP", 8) if number == 4 else ("socket.IPPROTO_IPV6", 49)
    serve(agent, "udp", family, ANY[family], options=f"s.setsockopt({level}, {option}, 1)")
    for which in ("first", "second"):
        peer.do(make("udp", family, "c"))
        peer.do(f"c.bind(({ip('second', number, PEER)!r}, 0)); c.connect(({ip(which, number)!r}, {PORT}))")
        peer.do("c.send(b'x')")
        agent.do("data, found, flags, source = s.recvmsg(9, 200)")
        agent.do(_ANSWER_V4 if number == 4 else _ANSWER_V6)
        assert peer.do("c.recv(9)") == "answer"


_ANSWER_V4 = """
import struct
index, own, to = struct.unpack('I4s4s', found[0][2])
s.sendmsg([b'answer'], [(socket.IPPROTO_IP, 8, struct.pack('I4s4s', 0, to, b''))], 0, source)
"""
_ANSWER_V6 = """
s.sendmsg([b'answer'], [(socket.IPPROTO_IPV6, 50, found[0][2])], 0, source)
"""


# -- 6: the loopback address -------------------------------------------------------------------------------------------


@shows("loopback", 2, 3, 4, 6)
@shows("any", 6)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("where", ["loopback", "any"])
def test_loopback_is_the_contexts_own(
    place: Lab, one: Context, other: Context, protocol: str, family: str, where: str
) -> None:
    address = LOOPBACK[family] if where == "loopback" else ANY[family]
    servers = [place.inside(one), place.inside(other), place.unconfined()]
    places = [one, other, None]
    if where == "any":
        servers.pop()  # the kernel lets nobody bind `*` beside the contexts' first addresses
        places.pop()
    names = {plain_loopback(family): LOOPBACK[family]}
    if (where, family) == ("any", "dual"):
        names["127.0.0.1"] = LOOPBACK["mapped"]
    for server in servers:
        serve(server, protocol, family, address)
        assert server.do("s.getsockname()")[:2] == [address, PORT]
    for server, confined in zip(servers, places, strict=True):
        client = place.unconfined() if confined is None else place.inside(confined)
        for plain, shown in names.items():
            source, local = reaches(client, server, protocol, plain)
            assert source == shown
            if protocol == "tcp":
                assert local == shown
                assert client.do("shown") == [plain, [plain, PORT]]


@shows("loopback", 6)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_loopback_of_others_is_not_reached(
    place: Lab, one: Context, other: Context, protocol: str, family: str
) -> None:
    plain = plain_loopback(family)
    serve(place.inside(one), protocol, family, LOOPBACK[family])
    assert refuses(place.inside(other), protocol, plain) == "ECONNREFUSED"
    assert refuses(place.unconfined(), protocol, plain) == "ECONNREFUSED"
    serve(place.unconfined(), protocol, family, LOOPBACK[family])
    assert refuses(place.inside(other), protocol, plain) == "ECONNREFUSED"


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_own_loopback_is_closed_to_who_knows_its_real_address(
    place: Lab, one: Context, other: Context, protocol: str, family: str
) -> None:
    server = place.inside(one)
    serve(server, protocol, family, LOOPBACK[family])
    real = one.loopback4 if family == "v4" else one.loopback6
    for client in (place.unconfined(), place.inside(other)):
        client.do("socket.setdefaulttimeout(0.5)")
        client.do(make(protocol, family, "c"))
        failed = client.fails(f"c.connect(({real!r}, {PORT}))")
        if protocol == "tcp":
            assert failed in ("ETIMEDOUT", "ENETUNREACH"), failed
        elif not failed:
            client.do("c.send(b'stranger')")
    own = place.inside(one)
    if protocol == "udp":
        own.do(make("udp", family, "c") + f"; c.sendto(b'own', ({LOOPBACK[family]!r}, {PORT}))")
        assert server.do("s.recv(9)") == "own"
    else:
        reaches(own, server, "tcp", LOOPBACK[family])


def test_other_loopback_addresses_are_the_contexts_own_too(place: Lab, one: Context) -> None:
    server, host = place.inside(one), place.unconfined()
    serve(host, "tcp", "v4", "127.0.0.53")
    client = place.inside(one)
    assert refuses(client, "tcp", "127.0.0.53") == "ECONNREFUSED"
    serve(server, "tcp", "v4", "127.0.0.53")
    assert server.do("s.getsockname()")[0] == "127.0.0.53"
    assert reaches(client, server, "tcp", "127.0.0.53") == ("127.0.0.1", "127.0.0.53")
    assert refuses(client, "tcp", "127.1.1.1") == "ENETUNREACH"


# -- what is not all of a network --------------------------------------------------------------------------------------


def test_context_of_one_family_has_both_loopbacks(place: Lab) -> None:
    confined = place.context(ip("first", 6))
    server, client, peer = place.inside(confined), place.inside(confined), place.at_peer()
    serve(server, "tcp", "dual", "::")
    for address, seen in (("127.0.0.1", "::ffff:127.0.0.1"), ("::1", "::1")):
        assert reaches(client, server, "tcp", address) == (seen, seen)
    assert reaches(peer, server, "tcp", ip("first", 6))[1] == ip("first", 6)
    assert refuses(client, "tcp", ip("near", 4, PEER)) == "ENETUNREACH"
    assert refuses(peer, "tcp", ip("first", 4)) == "ECONNREFUSED"


def test_forked_executed_and_threaded_programs_are_confined(place: Lab, one: Context) -> None:
    agent = place.inside(one)
    probe = f"import socket; s = socket.socket(); s.bind(({ip('free', 4)!r}, {PORT}))"
    agent.do(f"import subprocess; found = subprocess.run([sys.executable, '-c', {probe!r}], stderr=subprocess.PIPE)")
    assert "Cannot assign requested address" in agent.do("found.stderr")
    agent.do(
        "def work():\n"
        "    try:\n"
        f"        socket.socket().bind(({ip('free', 4)!r}, {PORT}))\n"
        "    except OSError as error:\n"
        "        said.append(errno.errorcode[error.errno])\n"
        "said = []; t = threading.Thread(target=work); t.start(); t.join()"
    )
    assert agent.do("said") == ["EADDRNOTAVAIL"]


def test_second_bind_fails_and_the_books_stay_true(place: Lab, one: Context) -> None:
    agent = place.inside(one)
    serve(agent, "tcp", "v4", "")
    before = place.books()
    assert agent.fails(f"s.bind(('', {PORT + 1}))") == "EINVAL"
    assert place.books() == before


def test_names_of_accepted_and_passed_sockets(place: Lab, one: Context) -> None:
    server, peer = place.inside(one), place.at_peer()
    serve(server, "tcp", "dual", "::")
    peer.do(f"c = socket.create_connection(({ip('second', 4)!r}, {PORT}))")
    server.do("a, p = s.accept()")
    assert server.do("a.getpeername()")[:2] == [f"::ffff:{ip('second', 4, PEER)}", peer.do("c.getsockname()")[1]]
    assert server.do("a.getsockname()")[:2] == [f"::ffff:{ip('second', 4)}", PORT]


def test_context_is_read_as_it_was_made(one: Context) -> None:
    assert context.read(one.name) == one
    assert context.missing_programs(one) == ()
    assert (one.name, Path(one.cgroup)) in list(context_places.found())


def test_every_cell_of_the_table_has_a_test() -> None:
    assert cells.with_tests(globals().values()) == cells.ALL
