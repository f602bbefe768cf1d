"""The network lock: nothing enters or leaves a group's namespace, and nobody is told.

While a group is frozen, dumped, killed or restored, its peers go on sending. One answer of the kernel that is not the
group's own (a RST from a port without a socket, a FIN, an ICMP error) ends a connection for ever; silence only makes
TCP retransmit. So the lock is one nft table named ``ckpt-lock-<8 hex digits>`` inside the namespace, whose chains come
before conntrack and fragment reassembly see a packet, and which drops without a word. CRIU's own repair packets (mark
0xC114) and IPv6 neighbour discovery pass; ARP is not seen by inet tables. Loopback is dropped as well.

A lock is *owned* or *permanent*. An owned table belongs to an ``nft`` child which stands on a pipe from this process
(table flag ``owner``, kernel 6001f930974 "netfilter: nftables: introduce table ownership", Linux 5.12): when ckpt dies,
even by SIGKILL, the pipe closes, the child ends and the kernel takes the table away, so a crash in a dump leaves the
group reachable. A permanent table stays until somebody removes it: for the time of a restore, and for the moment in
which the tasks of a committed dump die. Where the kernel knows no owner, an owned lock is silently a permanent one,
which ``find`` and ``remove`` let a later clean-up take away.

A *mute* lock drops neighbour discovery too, and has a second table of the same name in the family arp which drops ARP:
while a group moves, its address is answered for where it still is, and by nobody else. It is always permanent.

A group in the host's own namespace must not silence the host: there a ``Scope`` names what belongs to the group.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
import select
import subprocess
import time
from collections.abc import Iterable

from ckpt.errors import NetworkError, NotFoundError
from ckpt.kernel.run import CommandError, run, start
from ckpt.records import dataclass

MARK = 0xC114
"""The packet mark of CRIU's own repair packets (SOCCR_MARK in CRIU's soccr.h)."""

_NAME = re.compile(r"ckpt-lock-[0-9a-f]{8}")

# Before reassembly (-400), raw (-300) and conntrack (-200), so that conntrack entries stay as they were frozen.
_PRIORITY = -450

_HOLDER_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a lock in a shared namespace silences: addresses are plain (no prefix), ``0.0.0.0`` and ``::`` mean any.

    ``connections`` are (local address, local port, remote address, remote port) of TCP; ``listeners`` (address, port)
    of TCP; ``udp_ports`` local ports; ``datagrams`` (address, port) of UDP. ``mute`` are addresses that are silenced
    altogether, and not even answered for, as by a mute lock.
    """

    connections: tuple[tuple[str, int, str, int], ...] = ()
    listeners: tuple[tuple[str, int], ...] = ()
    udp_ports: tuple[int, ...] = ()
    datagrams: tuple[tuple[str, int], ...] = ()
    mute: tuple[str, ...] = ()


class NetworkLock:
    """The lock of one namespace: ``gate`` (no new connections), ``close`` (nothing at all), ``release``.

    As a context manager it is released at the end of the block. ``keep`` gives up the responsibility: what is then in
    place stays after this process, if it is permanent.
    """

    def __init__(self, netns: int, *, scope: Scope | None = None, mute: bool = False) -> None:
        self._netns = netns
        self._scope = scope
        self._mute = mute
        self._tables: list[_Table] = []
        self._ending: list[subprocess.Popen[bytes]] = []

    @property
    def _is_mute(self) -> bool:
        return self._mute or bool(self._scope and self._scope.mute)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tables that are in place now."""
        return tuple(table.name for table in self._tables)

    @property
    def owned(self) -> bool:
        """Whether all of it vanishes with this process."""
        return all(table.holder is not None for table in self._tables)

    def gate(self) -> None:
        """Let no new TCP connection in (SYN without ACK), and let handshakes under way end; always owned."""
        self._replace(_gate_rules(self._scope), owned=True)

    def close(self, *, permanent: bool = False) -> None:
        """Drop everything both ways; on return the table is in place, in the stead of what was there before.

        Called again with ``permanent`` it puts a lock that outlives this process in the place of an owned one,
        without a moment between them. Raises NetworkError (`lock-lost`) when there was one all the same.
        """
        self._replace(_closing_rules(self._scope, mute=self._mute), owned=not (permanent or self._is_mute))

    def require_intact(self) -> None:
        """NetworkError (`lock-lost`) when somebody has killed the holder of a table, and so opened the lock.

        What came in meanwhile was acknowledged by the kernel, and is in no image.
        """
        if any(table.is_lost for table in self._tables):
            raise NetworkError(
                "the network lock was lost",
                code="lock-lost",
                details="the nft process that held it was killed",
                hint="try again",
            )

    def release(self) -> None:
        """Take away every table of this lock; harmless when there is none."""
        failure: Exception | None = None
        while self._tables:
            try:
                _take_away(self._netns, self._tables.pop())
            except (NetworkError, CommandError) as error:
                failure = error
        while self._ending:
            _end(self._ending.pop())
        if failure is not None:
            raise failure

    def keep(self) -> tuple[str, ...]:
        """Forget the permanent tables, so that ``release`` leaves them; their names are returned for a later remove."""
        kept = tuple(table.name for table in self._tables if table.holder is None)
        self._tables = [table for table in self._tables if table.holder is not None]
        return kept

    def __enter__(self) -> NetworkLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _replace(self, rules: _Rules, *, owned: bool) -> None:
        before = self._tables[:]
        self._tables.append(_put_in_place(self._netns, rules, owned=owned))
        # Asked now: from here on the new table stands for them.
        self.require_intact()
        for table in before:
            if table.holder is not None:
                # Its table drops nothing that the new one lets pass: nobody need wait until it is gone.
                _let_go(table.holder)
                self._ending.append(table.holder)
            else:
                _take_away(self._netns, table)
            self._tables.remove(table)


def is_lock(name: str) -> bool:
    """Whether an nft table of that name is a lock."""
    return _NAME.fullmatch(name) is not None


def find(netns: int) -> tuple[str, ...]:
    """The names of all lock tables in ``netns``, whoever made them."""
    listing = run(["nft", "list", "tables", "inet"], netns=netns).decode(errors="replace")
    words = [line.split() for line in listing.splitlines()]
    return tuple(line[2] for line in words if len(line) == 3 and is_lock(line[2]))


def remove(netns: int, name: str) -> None:
    """Remove the permanent lock table ``name``, or one whose owner is gone.

    Raises ``NotFoundError`` when there is none and ``NetworkError`` when a live process owns it.
    """
    if not is_lock(name) or name not in find(netns):
        raise NotFoundError(f"there is no network lock {name}", code="lock-missing")
    commands = f"delete table inet {name}\n"
    if f"table arp {name}" in run(["nft", "list", "tables", "arp"], netns=netns).decode(errors="replace"):
        commands += f"delete table arp {name}\n"
    try:
        run(["nft", "-f", "-"], input=commands.encode(), netns=netns)
    except CommandError as error:
        raise NetworkError(
            f"cannot remove the network lock {name}",
            code="lock-remove",
            details=error.details,
            hint="a running ckpt owns it: wait for its end, or end it",
        ) from error


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    holder: subprocess.Popen[bytes] | None
    deleting: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether it went with its holder."""
        return self.holder is not None and self.holder.poll() is not None


@dataclass(frozen=True, slots=True)
class _Rules:
    """The rules of both directions and the sets that they name, as nft statements."""

    inbound: tuple[str, ...]
    outbound: tuple[str, ...]
    sets: tuple[str, ...] = ()
    mute: bool = False
    muted: tuple[str, ...] = ()

    def table(self, name: str, flags: str = "") -> str:
        """The command for one table, on one line: an interactive nft takes nothing else as one transaction."""
        chains = [
            f"chain {chain} {{ type filter hook {hook} priority {_PRIORITY}; policy accept; "
            + "; ".join((f"meta mark {MARK:#x} accept", *self._neighbours(side), *rules))
            + "; }"
            for chain, hook, side, rules in (
                ("inbound", "prerouting", "d", self.inbound),
                ("outbound", "output", "s", self.outbound),
            )
        ]
        table = f"add table inet {name} {{ {'; '.join((*filter(None, [flags]), *self.sets, *chains))}; }}\n"
        return table + self._arp(name)

    def deleting(self, name: str) -> str:
        """The commands that take away what ``table`` makes."""
        families = ("inet", "arp") if self._arp(name) else ("inet",)
        return "".join(f"delete table {family} {name}\n" for family in families)

    def _neighbours(self, side: str) -> Iterable[str]:
        """What becomes of neighbour discovery: it passes, but for addresses that are muted."""
        for address in self.muted:
            # An advertisement comes from the address that it is about (ndisc_send_na, net/ipv6/ndisc.c).
            yield f"{'ip6' if ':' in address else 'ip'} {side}addr {address} drop"
        if not self.mute:
            yield "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"

    def _arp(self, name: str) -> str:
        if self.mute:
            return _MUTE_ARP.format(name=name, policy="drop", inbound="", outbound="")
        muted = ", ".join(address for address in self.muted if ":" not in address)
        if not muted:
            return ""
        inbound, outbound = (f"arp {side}addr ip {{ {muted} }} drop; " for side in ("d", "s"))
        return _MUTE_ARP.format(name=name, policy="accept", inbound=inbound, outbound=outbound)


_MUTE_ARP = (
    "add table arp {name} {{ chain inbound {{ type filter hook input priority 0; policy {policy}; {inbound}}}; "
    "chain outbound {{ type filter hook output priority 0; policy {policy}; {outbound}}}; }}\n"
)


def _closing_rules(scope: Scope | None, *, mute: bool = False) -> _Rules:
    if scope is None:
        return _Rules(("drop",), ("drop",), mute=mute)
    inbound: list[str] = []
    outbound: list[str] = []
    sets: list[str] = []
    for family in (4, 6):
        word, kind = ("ip", "ipv4_addr") if family == 4 else ("ip6", "ipv6_addr")
        tuples = [
            f"{remote} . {remote_port} . {local} . {local_port}"
            for local, local_port, remote, remote_port in map(_plain_connection, scope.connections)
            if ipaddress.ip_address(local).version == family
        ]
        if tuples:
            service = "inet_service"
            sets.append(
                f"set connections{family} {{ type {kind} . {service} . {kind} . {service}; "
                f"elements = {{ {', '.join(sorted(set(tuples)))} }}; }}"
            )
            inbound.append(f"{word} saddr . tcp sport . {word} daddr . tcp dport @connections{family} drop")
            outbound.append(f"{word} daddr . tcp dport . {word} saddr . tcp sport @connections{family} drop")
    inbound += [f"{match} drop" for match in _listener_matches(scope, "d")]
    outbound += [f"{match} drop" for match in _listener_matches(scope, "s")]
    if scope.udp_ports:
        ports = ", ".join(map(str, sorted(set(scope.udp_ports))))
        inbound.append(f"udp dport {{ {ports} }} drop")
        outbound.append(f"udp sport {{ {ports} }} drop")
    for text, port in sorted(set(scope.datagrams)):
        address = _plain_address(text)
        word = "ip" if address.version == 4 else "ip6"
        inbound.append(f"{word} daddr {address} udp dport {port} drop")
        outbound.append(f"{word} saddr {address} udp sport {port} drop")
    muted = tuple(str(_plain_address(text)) for text in scope.mute)
    return _Rules(tuple(inbound), tuple(outbound), tuple(sets), muted=muted)


def _gate_rules(scope: Scope | None) -> _Rules:
    opening = "tcp flags & (syn | ack) == syn drop"
    if scope is None:
        return _Rules((opening,), ())
    return _Rules(tuple(f"{match} {opening}" for match in _listener_matches(scope, "d")), ())


def _listener_matches(scope: Scope, side: str) -> Iterable[str]:
    for text, port in sorted(set(scope.listeners)):
        address = _plain_address(text)
        if not address.is_unspecified:
            yield f"{'ip' if address.version == 4 else 'ip6'} {side}addr {address} tcp {side}port {port}"
        elif address.version == 4:
            yield f"meta nfproto ipv4 tcp {side}port {port}"
        else:
            # A listener on :: takes IPv4 as well, unless it is IPV6_V6ONLY; a silence too many is the lesser harm.
            yield f"tcp {side}port {port}"


def _plain_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address as packets carry it: an IPv4-mapped IPv6 address is IPv4, a zone is not part of it."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _plain_connection(connection: tuple[str, int, str, int]) -> tuple[str, int, str, int]:
    local, local_port, remote, remote_port = connection
    return str(_plain_address(local)), local_port, str(_plain_address(remote)), remote_port


def _put_in_place(netns: int, rules: _Rules, *, owned: bool) -> _Table:
    name = f"ckpt-lock-{secrets.token_hex(4)}"
    if owned and (holder := _hold(netns, name, rules)) is not None:
        return _Table(name, holder)
    try:
        # nft's own exit status says that the transaction was committed.
        run(["nft", "-f", "-"], input=rules.table(name).encode(), netns=netns)
    except CommandError as error:
        raise NetworkError(
            "cannot set the network lock",
            code="lock-set",
            details=error.details,
            hint="the kernel needs nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)",
        ) from error
    return _Table(name, None, rules.deleting(name))


def _hold(netns: int, name: str, rules: _Rules) -> subprocess.Popen[bytes] | None:
    """An interactive nft that owns the table ``name``; None when the kernel or nft knows no ownership."""
    holder = start(["nft", "-i"], netns=netns, stdout=subprocess.DEVNULL)
    try:
        assert holder.stdin is not None and holder.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            holder.stdin.write(rules.table(name, "flags owner").encode())
            holder.stdin.flush()
        deadline = time.monotonic() + _HOLDER_TIMEOUT
        while time.monotonic() < deadline:
            # nft commits a table whole, so a name that is listed has all its rules. A refusal comes on stderr.
            refused, _, _ = select.select([holder.stderr], [], [], 0.005)
            if name in find(netns):
                return holder
            if refused:
                break
    except BaseException:
        _end(holder)
        raise
    _end(holder)
    return None


def _end(holder: subprocess.Popen[bytes]) -> None:
    """Close the holder's pipe and wait for it; the kernel removes the table when its socket is closed."""
    with holder:
        _let_go(holder)
        try:
            holder.wait(_HOLDER_TIMEOUT)
        except subprocess.TimeoutExpired:
            holder.kill()


def _let_go(holder: subprocess.Popen[bytes]) -> None:
    """Close the holder's pipe: it ends some milliseconds later."""
    assert holder.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        holder.stdin.close()


def _take_away(netns: int, table: _Table) -> None:
    if table.holder is not None:
        _end(table.holder)
        return
    with contextlib.suppress(CommandError):
        # What it has besides is known; if it is not as it was made, `remove` looks.
        run(["nft", "-f", "-"], input=table.deleting.encode(), netns=netns)
        return
    try:
        remove(netns, table.name)
    except NotFoundError:
        return  # somebody's clean-up, or `nft flush ruleset`, was here before
