"""Rules about sockets: kinds that CRIU has no code for, and state that it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt.check.finding import block, of_socket, warn
from ckpt.model.finding import Finding
from ckpt.model.process import GroupFacts
from ckpt.model.socket import IPPROTO_MPTCP, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP, Socket

FAMILIES = frozenset({"inet", "inet6", "unix", "packet", "netlink"})
STREAM_PROTOCOLS = frozenset({IPPROTO_TCP})
DGRAM_PROTOCOLS = frozenset({IPPROTO_UDP, 136, 1, 58})
"""UDP, UDPLite, and the ICMP of ping sockets (CRIU 4.2)."""


def check_sockets(facts: GroupFacts) -> Iterator[Finding]:
    """The rules that look at each socket, and at what of a namespace no process holds."""
    for socket in facts.sockets:
        if socket.family not in FAMILIES:
            yield _family(socket)
            continue
        refused = _protocol(socket) if socket.is_inet else None
        if refused is not None:
            yield refused
            continue
        yield from _state(facts, socket)
        yield from _lost(facts, socket)
    yield from _unheld(facts)


def _family(socket: Socket) -> Finding:
    # "BUG! Unknown socket collected (family 40)" (criu/sockets.c); tried: vsock, xdp
    code = "socket-vsock" if socket.family == "vsock" else "socket-family"
    return block(
        code,
        of_socket(socket),
        f"is a socket of the family {socket.family}, which CRIU does not know",
        "let the program use TCP or unix sockets instead, or close it before the dump",
    )


def _protocol(socket: Socket) -> Finding | None:
    if socket.protocol == IPPROTO_MPTCP and socket.type != "raw":
        # "Unsupported proto 262 for socket 6842" (criu/sk-inet.c)
        return block(
            "socket-mptcp",
            of_socket(socket),
            f"is a multipath TCP socket ({socket.state}), which CRIU cannot dump",
            "start the program without it: GODEBUG=multipathtcp=0 for Go, its own option elsewhere, or for all of a "
            "namespace by sysctl net.mptcp.enabled=0",
        )
    if socket.protocol == IPPROTO_SCTP and socket.type != "raw":
        return block(
            "socket-sctp", of_socket(socket), "is an SCTP socket, which CRIU cannot dump", "let the program use TCP"
        )
    taken = {"stream": STREAM_PROTOCOLS, "dgram": DGRAM_PROTOCOLS}.get(socket.type, frozenset())
    if socket.type != "raw" and socket.protocol not in taken:
        return block(
            "socket-protocol",
            of_socket(socket),
            f"is a {socket.type} socket of protocol {socket.protocol}, which CRIU cannot dump",
            "let the program use TCP or UDP instead, or close it before the dump",
        )
    return None


def _state(facts: GroupFacts, socket: Socket) -> Iterator[Finding]:
    if facts.netns and socket.netns not in (facts.netns, *(one.inode for one in facts.nested)):
        # of inet: dumps, and then "Unable to find a network namespace" (criu/sockets.c); of unix: "Unix socket 78809
        # not found" (criu/sk-unix.c)
        yield block(
            "socket-netns",
            of_socket(socket),
            f"was made in a network namespace ({socket.netns}) in which no process of the group is",
            "let the program open its sockets after it has entered its namespace, or keep a process in the other one",
        )
    if socket.options.corked:
        # "Can't dump corked dgram socket c0c0" (criu/sk-inet.c)
        yield block(
            "udp-corked",
            of_socket(socket),
            "is a UDP socket with UDP_CORK, which holds back a datagram",
            "try again; if it stays so, switch UDP_CORK off in the program",
        )
    if socket.family == "netlink" and socket.receive_queue:
        # "The socket has data to read" (criu/sk-netlink.c)
        yield block(
            "netlink-queue",
            of_socket(socket),
            "is a netlink socket with messages that the program has not read",
            "try again; if it stays so, the program does not read its netlink socket",
        )
    if socket.options.upper_protocol:
        # restored as plain TCP: what the program then sends goes out without its TLS record
        yield block(
            "socket-upper-protocol",
            of_socket(socket),
            f"has the kernel speak {socket.options.upper_protocol} on top of TCP, whose state CRIU does not keep",
            "switch kernel TLS off in the program",
        )


def _lost(facts: GroupFacts, socket: Socket) -> Iterator[Finding]:
    if socket.is_inet and socket.type == "dgram" and socket.receive_queue:
        yield warn(
            "udp-queue",
            of_socket(socket),
            f"unread datagrams wait on {socket.local}: they are lost, as datagrams may be",
            "nothing, if the protocol repeats them",
        )
    if socket.groups:
        yield warn(
            "multicast",
            of_socket(socket),
            f"has joined {', '.join(socket.groups)}, which CRIU does not join again",
            "let the program join again after the restore",
        )
    lost = [
        *(["TCP_USER_TIMEOUT"] if socket.options.user_timeout else []),
        *(["IP_TRANSPARENT"] if socket.options.transparent else []),
        *([f"TCP_CONGESTION {socket.options.congestion}"] if _own_congestion(facts, socket) else []),
    ]
    if lost:
        yield warn(
            "socket-option",
            of_socket(socket),
            f"{', '.join(lost)} of this socket is not restored",
            "let the program set it again after the restore",
        )


def _own_congestion(facts: GroupFacts, socket: Socket) -> bool:
    usual = {one.inode: one.congestion for one in facts.nested}.get(socket.netns, facts.congestion)
    return None not in (socket.options.congestion, usual) and socket.options.congestion != usual


def _unheld(facts: GroupFacts) -> Iterator[Finding]:
    nested = {one.inode: (one.accept_queue, one.orphans) for one in facts.nested}
    for inode, (queue, orphans) in {facts.netns: (facts.accept_queue, facts.orphans), **nested}.items():
        listeners = [one for one in facts.sockets if one.is_tcp and one.state == "listen"]
        # where the namespace is the host's, its queues were not read
        listening = sum(one.accept_queue or 0 for one in listeners if one.netns == inode or not nested)
        waiting = max(queue, listening)
        if waiting:
            # "In-flight connection (l) for f026" (criu/sk-inet.c), unless skip_in_flight
            yield warn(
                "socket-in-flight",
                f"network namespace {inode}",
                f"{waiting} connections wait to be accepted: only those that the program accepts in time are kept",
                "nothing, if the program accepts them soon",
            )
        for orphan in orphans:
            yield warn(
                "socket-orphaned",
                of_socket(orphan),
                f"was closed by its program ({orphan.state}) before its peer has answered; the peer will not get the "
                "rest",
                "wait until it is gone (ss --tcp), if the peer must get the last data",
            )
