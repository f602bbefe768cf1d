"""The tables of iptables-legacy: which are in use in a namespace, as text, and loaded again.

A table is in use when the kernel lists it for the namespace, in ``/proc/net/ip_tables_names``: to ask for one that is
not listed would make it. Counters are part of the text. arptables and ebtables of the legacy kind do not travel; that
one of them is in use is told. What some extensions remember beside their rules is told as well.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ckpt.errors import NetworkError, UnsupportedError
from ckpt.kernel import netlink
from ckpt.kernel.modules import unloaded
from ckpt.kernel.netlink import Netlink, attribute, parse
from ckpt.kernel.netns import entered
from ckpt.kernel.run import CommandError, run
from ckpt.model.filtering import LegacyTable
from ckpt.model.network import Unread

_FAMILIES = {4: ("ip_tables_names", "iptables-legacy"), 6: ("ip6_tables_names", "ip6tables-legacy")}
_NET = "/proc/thread-self/net"

# What these extensions remember shows as files that are not empty, one for each list.
_MEMORIES = {"xt_recent": "recent", "ipt_hashlimit": "hashlimit", "ip6t_hashlimit": "hashlimit"}

_TIMEOUT = re.compile(r"(^.* -j CT .*--timeout )(\S+)", re.MULTILINE)
_CUT = 4

_EBTABLES = ("ebtable_filter", "ebtable_nat", "ebtable_broute")
_NFNL_MSG_HOOK_GET = 12 << 8
_PF_BRIDGE = 7
_BRIDGE_HOOKS = range(6)
_HOOK_NUMBER, _HOOK_MODULE = 1, 5


def read_tables(netns: int) -> tuple[tuple[LegacyTable, ...], tuple[Unread, ...]]:
    """Every table that ``netns`` has, in the order in which they were made, and what of legacy tables cannot travel."""
    tables: list[LegacyTable] = []
    unread: list[Unread] = []
    for family, (file, program) in _FAMILIES.items():
        for name in _names(netns, file):
            try:
                tables.append(LegacyTable(family=family, name=name, text=_saved(netns, program, name)))
            except (UnsupportedError, CommandError) as error:
                what = f"is in use, and cannot be read: {error.details or error.brief}"
                unread.append(Unread(code="iptables-legacy", subject=f"{program} table {name}", what=what))
    unread += [
        Unread(code="arptables", subject=f"arptables table {name}", what="is in use")
        for name in _names(netns, "arp_tables_names")
    ]
    unread += _ebtables(netns)
    unread += _memories(netns)
    return tuple(tables), tuple(unread)


def _names(netns: int, file: str) -> list[str]:
    try:
        with entered(netns), open(f"{_NET}/{file}", encoding="ascii") as names:
            return names.read().split()[::-1]  # the newest is listed first
    except OSError:
        return []  # this kernel has no such tables


def _saved(netns: int, program: str, name: str) -> str:
    text = run([f"{program}-save", "-c", "-t", name], netns=netns).decode("utf-8", "surrogateescape")
    # The comments are the time at which it was read.
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


def _ebtables(netns: int) -> Iterator[Unread]:
    """Whether a table of ebtables is hooked in: nothing but the list of hooks tells it without making the table."""
    possible = [name for name in _EBTABLES if os.path.exists(f"/sys/module/{name}")]
    if not possible:
        return
    found: set[str] = set()
    try:
        if unloaded("nfnetlink_hook"):
            raise OSError
        with Netlink(netlink.NETFILTER, netns=netns) as connection:
            for hook in _BRIDGE_HOOKS:
                request = struct.pack("=BBH", _PF_BRIDGE, 0, 0) + attribute(_HOOK_NUMBER, struct.pack(">I", hook))
                for _, body in connection.dump(_NFNL_MSG_HOOK_GET, request):
                    found.add(netlink.text(parse(body, 4).get(_HOOK_MODULE, b"")))
    except OSError:
        what = f"may be in use ({', '.join(possible)}); this kernel does not tell without the module nfnetlink_hook"
        yield Unread(code="ebtables-unknown", subject="ebtables tables", what=what)
        return
    for name in sorted(found.intersection(_EBTABLES)):
        yield Unread(code="ebtables", subject=f"ebtables table {name.removeprefix('ebtable_')}", what="is in use")


def _memories(netns: int) -> Iterator[Unread]:
    with entered(netns):
        for directory, extension in _MEMORIES.items():
            try:
                lists = sorted(os.listdir(f"{_NET}/{directory}"))
            except OSError:
                continue
            for name in lists:
                with open(f"{_NET}/{directory}/{name}", encoding="utf-8", errors="replace") as content:
                    count = sum(1 for _ in content)
                if count:
                    what = f"remembers {count} addresses, and will begin with none"
                    yield Unread(code="xt-memory", subject=f"list {name} of the iptables match {extension}", what=what)


def with_whole_names(tables: Sequence[LegacyTable], policies: Sequence[str]) -> tuple[list[LegacyTable], list[Unread]]:
    """``tables`` with the names of timeout policies whole, and those where it is not clear which is meant.

    The kernel shows four bytes of a name after ``--timeout`` (see ``nft_objects.names_cut_timeout``).
    """
    unread: list[Unread] = []
    result: list[LegacyTable] = []
    for table in tables:

        def whole(match: re.Match[str], table: LegacyTable = table) -> str:
            shown = match[2]
            meant = [name for name in policies if name == shown or (len(shown) == _CUT and name.startswith(shown))]
            if len(meant) != 1:
                what = f"has a rule with a timeout policy of which the kernel shows only {shown!r}"
                subject = f"{_FAMILIES[table.family][1]} table {table.name}"
                unread.append(Unread(code="iptables-legacy", subject=subject, what=what))
                return match[0]
            return match[1] + meant[0]

        result.append(replace(table, text=_TIMEOUT.sub(whole, table.text)))
    return result, unread


def load_tables(netns: int, tables: Sequence[LegacyTable]) -> None:
    """Put all ``tables`` in place, those of a family with one call. Raises NetworkError with the tool's own words."""
    for family, (_, program) in _FAMILIES.items():
        text = "".join(table.text for table in tables if table.family == family)
        if not text:
            continue
        try:
            run([f"{program}-restore", "-c"], input=text.encode("utf-8", "surrogateescape"), netns=netns)
        except CommandError as error:
            names = ", ".join(table.name for table in tables if table.family == family)
            raise NetworkError(
                f"cannot load the {program} tables {names}",
                code="iptables-load",
                details=error.details,
                hint="the kernel or the iptables here may lack an extension that a rule uses",
            ) from error
