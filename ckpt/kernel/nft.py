"""nftables rulesets: each table as the text that nft shows of it, and loaded again.

The text is nft's own language, with counters and the elements of sets, so what it can say travels exactly. Tables are
first asked for by netlink, so that a namespace without any costs no process. The lock's own tables are never read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from ckpt.errors import NetworkError
from ckpt.kernel import lock, netlink
from ckpt.kernel.netlink import Netlink
from ckpt.kernel.netns import entered
from ckpt.kernel.run import CommandError, run
from ckpt.model.network import NftTable, Unread

_SUBSYSTEM = 10 << 8
_NFT_MSG_NEWTABLE = _SUBSYSTEM | 0
_NFT_MSG_GETTABLE = _SUBSYSTEM | 1
_NFT_MSG_NEWGEN = _SUBSYSTEM | 15
_NFT_MSG_GETGEN = _SUBSYSTEM | 16
_NFTA_TABLE_NAME = 1
_NFTA_TABLE_FLAGS = 2
_NFTA_GEN_ID = 1
_OWNER = 2
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HEADER = struct.pack("=BBH", 0, 0, 0)

_TABLE_LINE = re.compile(r"table (\S+) (\S+) \{.*")
_LEGACY = ("ip_tables_names", "ip6_tables_names", "arp_tables_names")


def generation(netns: int) -> int:
    """A number that changes with every change of the ruleset."""
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        for kind, body in connection.request(_NFT_MSG_GETGEN, _HEADER):
            if kind == _NFT_MSG_NEWGEN:
                return netlink.number(netlink.parse(body, 4)[_NFTA_GEN_ID], "be")
    return 0


def read_tables(netns: int) -> tuple[tuple[NftTable, ...], tuple[Unread, ...]]:
    """Every table but the lock's, and what of them cannot travel."""
    unread = [
        Unread(code="iptables-legacy", subject=f"iptables table {name}", what=f"is in use ({file})")
        for file in _LEGACY
        for name in _legacy_names(netns, file)
    ]
    listed: list[tuple[str, str]] = []
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        for kind, body in connection.dump(_NFT_MSG_GETTABLE, _HEADER):
            if kind != _NFT_MSG_NEWTABLE:
                continue
            found = netlink.parse(body, 4)
            name = netlink.text(found[_NFTA_TABLE_NAME])
            if lock.is_lock(name):
                continue
            family = _FAMILIES.get(body[0], str(body[0]))
            listed.append((family, name))
            if netlink.number(found.get(_NFTA_TABLE_FLAGS, b""), "be") & _OWNER:
                what = "is owned by a running process and will belong to nobody"
                unread.append(Unread(code="nft-owner", subject=f"nft table {family} {name}", what=what))
    texts = _texts(run(["nft", "list", "ruleset"], netns=netns).decode("utf-8", "surrogateescape")) if listed else {}
    tables: list[NftTable] = []
    for family, name in listed:
        text = texts.get((family, name))
        if text is None:
            unread.append(Unread(code="nft-table", subject=f"nft table {family} {name}", what="is not shown by nft"))
            continue
        tables.append(NftTable(family=family, name=name, text=text))
        if re.search(r"\bxt (target|match)\b|# ?xt_", text):
            what = "holds iptables extensions that nft cannot say"
            unread.append(Unread(code="nft-xt", subject=f"nft table {family} {name}", what=what))
    return tuple(tables), tuple(unread)


def _legacy_names(netns: int, file: str) -> list[str]:
    try:
        with entered(netns), open(f"/proc/thread-self/net/{file}", encoding="ascii") as names:
            return names.read().split()
    except OSError:
        return []  # this kernel has no such tables


def _texts(ruleset: str) -> dict[tuple[str, str], str]:
    """The text of each table by family and name."""
    found: dict[tuple[str, str], str] = {}
    key: tuple[str, str] | None = None
    lines: list[str] = []
    for line in ruleset.splitlines():
        if key is None:
            if match := _TABLE_LINE.fullmatch(line):
                key = (match[1], match[2].strip('"'))
                lines = [f"table {match[1]} {match[2]} {{"]
        elif line == "}":
            found[key] = "\n".join([*lines, "}", ""])
            key = None
        elif line.strip() != "flags owner":
            lines.append(line)
    return found


def load(netns: int, tables: Sequence[NftTable]) -> None:
    """Load all ``tables`` as one transaction."""
    if not tables:
        return
    text = "".join(table.text for table in tables)
    try:
        run(["nft", "-f", "-"], input=text.encode("utf-8", "surrogateescape"), netns=netns)
    except CommandError as error:
        raise NetworkError(
            "cannot load the nftables ruleset",
            code="nft-load",
            details=error.details,
            hint="the nft here may be older than the one that showed the ruleset",
        ) from error
