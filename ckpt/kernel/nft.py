"""nftables rulesets: each table as the kernel lists it and as nft shows it, and loaded again.

What travels are the kernel's own objects (``nft_objects``); beside them goes the text that nft shows, for people and
for the comparison of two images. Tables are asked for by netlink, so that a namespace without any costs no process.
The lock's own tables are never read. A table that was written by hand has only its text, which nft then loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ckpt.errors import CkptError, NetworkError
from ckpt.kernel import lock, netlink
from ckpt.kernel.netlink import Netlink
from ckpt.kernel.nft_objects import FAMILIES, header, load_objects, names_cut_timeout, read_objects
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

_TABLE_LINE = re.compile(r"table (\S+) (\S+) \{.*")


def generation(netns: int) -> int:
    """A number that changes with every change of the ruleset."""
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        for kind, body in connection.request(_NFT_MSG_GETGEN, header()):
            if kind == _NFT_MSG_NEWGEN:
                return netlink.number(netlink.parse(body, 4)[_NFTA_GEN_ID], "be")
    return 0


def read_tables(netns: int) -> tuple[tuple[NftTable, ...], tuple[Unread, ...]]:
    """Every table but the lock's, and what of them cannot travel."""
    unread: list[Unread] = []
    listed: list[tuple[str, str]] = []
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        for kind, body in connection.dump(_NFT_MSG_GETTABLE, header()):
            if kind != _NFT_MSG_NEWTABLE:
                continue
            found = netlink.parse(body, 4)
            name = netlink.text(found[_NFTA_TABLE_NAME])
            if lock.is_lock(name):
                continue
            family = FAMILIES.get(body[0], str(body[0]))
            listed.append((family, name))
            if netlink.number(found.get(_NFTA_TABLE_FLAGS, b""), "be") & _OWNER:
                what = "is owned by a running process and will belong to nobody"
                unread.append(Unread(code="nft-owner", subject=f"nft table {family} {name}", what=what))
        if not listed:
            return (), ()
        objects = read_objects(connection)
    for family, name in listed:
        if any(map(names_cut_timeout, objects.get((family, name), ()))):
            what = "has a rule of iptables with a timeout policy, of whose name the kernel shows only the beginning"
            unread.append(Unread(code="nft-xt", subject=f"nft table {family} {name}", what=what))
    texts = _shown(netns)
    tables = [
        NftTable(family=family, name=name, text=texts.get((family, name), ""), objects=objects.get((family, name), ()))
        for family, name in listed
    ]
    return tuple(tables), tuple(unread)


def _shown(netns: int) -> Mapping[tuple[str, str], str]:
    """The text of each table, as far as the nft here can say it: nothing depends on it."""
    try:
        return _texts(run(["nft", "list", "ruleset"], netns=netns).decode("utf-8", "surrogateescape"))
    except CkptError:
        return {}


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
    """Load all ``tables``: those with objects as one transaction, and those that are only text as another."""
    load_objects(netns, [table for table in tables if table.objects])
    text = "".join(table.text for table in tables if not table.objects)
    if not text:
        return
    try:
        run(["nft", "-f", "-"], input=text.encode("utf-8", "surrogateescape"), netns=netns)
    except CommandError as error:
        raise NetworkError(
            "cannot load the nftables ruleset",
            code="nft-load",
            details=error.details,
            hint="the nft here may be older than the one that showed the ruleset",
        ) from error
