"""Namespaces that nobody has thought of: scripts for the system's own tools, drawn at random, each of which succeeds.

A script is text, so that a failure shows what to type to see it again. What is drawn depends on the kernel: every kind
of link and of traffic control that it makes and that travels takes part. What links keep and are is drawn here, what
goes over them in ``random_parts``. The tools are fed by batches, because a process for each line would take longer
than all the rest.
"""

from __future__ import annotations

import itertools
import shlex
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st

from ckpt.model.travel import KINDS
from tests.net.oracle import works

_T = TypeVar("_T")

_LETTERS = st.text(string.ascii_letters + string.digits + "_-.$;&|<>()~'é字😀", min_size=1, max_size=14)
_NAMES = _LETTERS.map(lambda text: f"n{text}").filter(lambda text: len(text.encode()) <= 15)
_ALTNAMES = st.text(string.ascii_letters + "-.$;é", min_size=20, max_size=40)
_ALIASES = st.text(string.ascii_letters + " $;'|&é", max_size=30).map(str.strip)

# How each kind that needs no more than that is made; {lower} is the link that it stands on.
_MADE = {
    "dummy": "link add name {name} index {index} type dummy",
    "ifb": "link add name {name} index {index} type ifb",
    "nlmon": "link add name {name} index {index} type nlmon",
    "vlan": "link add link {lower} name {name} index {index} type vlan id {number} reorder_hdr {switch}",
    "macvlan": "link add link {lower} name {name} index {index} type macvlan mode {mode}",
    "macvtap": "link add link {lower} name {name} index {index} type macvtap mode {mode}",
    "vxlan": "link add name {name} index {index} type vxlan id {number} dstport 4789 ttl {ttl} {nolearning}",
    "geneve": "link add name {name} index {index} type geneve id {number} remote 192.0.2.9 ttl {ttl}",
    "vrf": "link add name {name} index {index} type vrf table 5{number}",
    "tun": "tuntap add dev {name} mode {tun} user {number} {queues}",
}
_STANDING = ("vlan", "macvlan", "macvtap")
_WITHOUT_IP = ("nlmon", "macvtap", "vrf", "ifb", "tun", "geneve", "vxlan")

_BRIDGE_OPTIONS = {
    "ageing_time": (0, 100000),
    "priority": (0, 65535),
    "forward_delay": (200, 3000),
    "hello_time": (100, 1000),
    "max_age": (600, 4000),
    "mcast_querier": (0, 1),
    "mcast_router": (0, 2),
    "mcast_igmp_version": (2, 3),
    "mcast_mld_version": (1, 2),
    "mcast_last_member_count": (1, 9),
    "mcast_startup_query_count": (1, 9),
    "mcast_query_interval": (1000, 20000),
    "mcast_query_use_ifaddr": (0, 1),
    "vlan_default_pvid": (0, 4094),
    "vlan_stats_enabled": (0, 1),
    "no_linklocal_learn": (0, 1),
}
_PORT_OPTIONS = {
    "cost": (1, 65535),
    "priority": (0, 63),
    "group_fwd_mask": (8, 9),
    "mcast_router": (0, 2),
}
_PORT_SWITCHES = (
    "hairpin",
    "guard",
    "root_block",
    "fastleave",
    "learning",
    "flood",
    "mcast_flood",
    "bcast_flood",
    "mcast_to_unicast",
    "neigh_suppress",
    "vlan_tunnel",
    "isolated",
    "proxy_arp",
    "proxy_arp_wifi",
)


class Dice:
    """Hypothesis's choices, in words."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def number(self, least: int, greatest: int) -> int:
        """One of the numbers between, both included."""
        return self.draw(st.integers(least, greatest))

    def chance(self, of_ten: int) -> bool:
        """True in so many cases of ten."""
        return self.number(1, 10) <= of_ten

    def one(self, choices: Sequence[_T]) -> _T:
        """One of them."""
        return choices[self.number(0, len(choices) - 1)]

    def some(self, choices: Sequence[_T], most: int) -> list[_T]:
        """A few of them in their order, perhaps none, each once."""
        chosen = self.draw(st.sets(st.integers(0, len(choices) - 1), max_size=min(most, len(choices))))
        return [choices[number] for number in sorted(chosen)]

    def mac(self) -> str:
        """A unicast address of a link."""
        return bytes([2, *self.number(0, (1 << 40) - 1).to_bytes(5, "big")]).hex(":")


@dataclass(slots=True)
class Slot:
    """One link that was drawn."""

    name: str
    kind: str
    up: bool = True
    master: str = ""
    queues: int = 1
    mtu: int = 1500
    other: Slot | None = None
    """The other end of a pair."""
    bridgeable: bool = True
    """Not both ends of a pair: a frame would go round for ever."""

    @property
    def takes_addresses(self) -> bool:
        """Whether addresses and routes are set on it: where the kernel would not take them away again."""
        return self.up and not self.master and self.kind not in _WITHOUT_IP


@dataclass(slots=True, repr=False, eq=False)
class Draft:
    """What is typed into one namespace, one after the other: tool and line."""

    links: list[Slot] = field(default_factory=list)
    place: int = 0
    """Which of the group's namespaces it is."""
    templates: list[tuple[str, str]] = field(default_factory=list)
    making: list[tuple[str, str]] = field(default_factory=list)
    unnumbered: list[tuple[str, str]] = field(default_factory=list)
    """Links whose number nobody can choose: after the others, lest it be one of theirs."""
    keeping: list[tuple[str, str]] = field(default_factory=list)
    rest: list[tuple[str, str]] = field(default_factory=list)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<{len(self.links)} links>")  # the scripts are in the failure's notes, to be typed

    def scripts(self) -> tuple[str, ...]:
        """For ``sh``, each in all namespaces before the next: templates, links, what they keep, what they carry."""
        parts = (self.templates, [*self.making, *self.unnumbered], self.keeping, self.rest)
        return tuple("\n".join(_batches(lines)) for lines in parts)


def _batches(lines: Sequence[tuple[str, str]]) -> Iterator[str]:
    for tool, run in itertools.groupby(lines, key=lambda one: one[0]):
        text = "\n".join(line for _, line in run)
        yield text if tool == "sh" else f"{tool} <<'END'\n{text}\nEND"


def write(key: str, value: str | int) -> tuple[str, str]:
    """The line that sets a sysctl."""
    return "sh", f"echo {shlex.quote(str(value))} > {shlex.quote(f'/proc/sys/{key}')}"


IP, IP6, BRIDGE, TC = "ip -batch -", "ip -6 -batch -", "bridge -batch -", "tc -batch -"

_probed: dict[str, bool] = {}


def has(script: str) -> bool:
    """Whether ``script`` works here, where v0 and v1 are a pair of veths, both up; asked once."""
    if script not in _probed:
        pair = "ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up"
        _probed[script] = works(f"{pair}\n{script}")
    return _probed[script]


def has_vlans() -> bool:
    """Whether bridges here have VLANs."""
    return has("ip link add x0 type bridge vlan_filtering 1")


def kinds() -> list[str]:
    """The kinds beside veths and bridges that travel and that this kernel makes."""
    sample = {"name": "x0", "index": 77, "lower": "v0", "number": 5, "switch": "on", "mode": "vepa", "ttl": 9}
    sample |= {"nolearning": "", "tun": "tap", "queues": ""}
    return [kind for kind, line in _MADE.items() if kind in KINDS and has(f"ip {line.format_map(sample)}")]


def draw_tie(dice: Dice, earlier: Sequence[Draft], draft: Draft, names: Iterator[str], indices: Iterator[int]) -> None:
    """A pair of veths from one of the namespaces before to that of ``draft``."""
    place = dice.number(0, len(earlier) - 1)
    ends = [Slot(name=next(names), kind="veth", mtu=dice.number(1280, 9000)) for _ in range(2)]
    ends[0].other, ends[1].other = ends[1], ends[0]
    parts = [f"name {end.name} index {next(indices)} mtu {end.mtu} address {dice.mac()}" for end in ends]
    # The other namespace is written as a number here.
    line = f"link add {parts[0]} type veth peer {parts[1]} netns @{len(earlier)}"
    earlier[place].making.append((IP, line))
    earlier[place].links.append(ends[0])
    draft.links.append(ends[1])


def draw_links(dice: Dice, draft: Draft, names: Iterator[str], indices: Iterator[int]) -> None:
    """Pairs of veths, links on them and beside them, and bridges."""
    for _ in range(dice.number(1, 3)):
        _draw_pair(dice, draft, names, indices)
    for _ in range(dice.number(0, 2)):
        _draw_other(dice, draft, names, indices)
    for _ in range(dice.number(0, 2)):
        _draw_bridge(dice, draft, names, indices)


def _draw_pair(dice: Dice, draft: Draft, names: Iterator[str], indices: Iterator[int]) -> None:
    ends = [Slot(name=next(names), kind="veth", mtu=dice.number(1280, 9000)) for _ in range(2)]
    parts = []
    for end in ends:
        if dice.chance(2):
            end.queues = dice.number(2, 4)
        queues = f"numtxqueues {end.queues} numrxqueues {end.queues}" if end.queues > 1 else ""
        parts.append(f"name {end.name} index {next(indices)} mtu {end.mtu} address {dice.mac()} {queues}")
    draft.making.append((IP, f"link add {parts[0]} type veth peer {parts[1]}"))
    ends[0].other, ends[1].other = ends[1], ends[0]
    ends[dice.number(0, 1)].bridgeable = False
    draft.links += ends


def _draw_other(dice: Dice, draft: Draft, names: Iterator[str], indices: Iterator[int]) -> None:
    kind = dice.one(kinds())
    lower = dice.one([link for link in draft.links if link.kind == "veth"])
    values = {
        "name": next(names),
        "index": next(indices),
        "lower": lower.name,
        "number": len(draft.links) + 1,
        "switch": dice.one(["on", "off"]),
        "mode": dice.one(["private", "vepa", "bridge"]),
        "ttl": dice.number(1, 255),
        "nolearning": dice.one(["", "nolearning"]),
        "tun": dice.one(["tap", "tun"]),
        "queues": dice.one(["", "multi_queue", "vnet_hdr"]),
    }
    (draft.unnumbered if kind == "tun" else draft.making).append((IP, _MADE[kind].format_map(values)))
    slot = Slot(name=str(values["name"]), kind=kind, mtu=lower.mtu if kind in _STANDING else 1500)
    draft.links.append(slot)


def _draw_bridge(dice: Dice, draft: Draft, names: Iterator[str], indices: Iterator[int]) -> None:
    bridge = Slot(name=next(names), kind="bridge")
    known = [name for name, span in _BRIDGE_OPTIONS.items() if has(f"ip link add x0 type bridge {name} {span[0]}")]
    options = [f"{name} {dice.number(*_BRIDGE_OPTIONS[name])}" for name in dice.some(known, 6)]
    filtering = ""
    if has_vlans():
        filtering = dice.one(["", "vlan_filtering 1", "vlan_filtering 1 vlan_protocol 802.1ad"])
    address = f"address {dice.mac()}" if dice.chance(6) else ""
    draft.making.append(
        (
            IP,
            f"link add name {bridge.name} index {next(indices)} {address} type bridge {filtering} {' '.join(options)}",
        )
    )
    draft.links.append(bridge)


def finish_links(dice: Dice, draft: Draft) -> None:
    """Masters, names, numbers and flags; and up, but for a few."""
    bridges = [link for link in draft.links if link.kind == "bridge"]
    lowers = {line.split()[3] for _, line in draft.making if line.startswith("link add link ")}
    for link in draft.links:
        if bridges and link.kind == "veth" and link.bridgeable and link.name not in lowers and dice.chance(4):
            link.master = dice.one(bridges).name
            draft.keeping.append((IP, f"link set dev {link.name} master {link.master}"))
            draft.keeping += [(IP, f"link set dev {link.name} type bridge_slave {one}") for one in _port_options(dice)]
        _draw_attributes(dice, draft, link)
    for link in draft.links:
        link.up = dice.chance(9)
        if link.up:
            draft.keeping.append((IP, f"link set dev {link.name} up"))
    draft.keeping.append((IP, "link set lo up"))
    draft.links.append(Slot(name="lo", kind="loopback"))


def _port_options(dice: Dice) -> list[str]:
    options = [f"{name} {dice.number(*_PORT_OPTIONS[name])}" for name in dice.some(list(_PORT_OPTIONS), 2)]
    return options + [f"{name} {dice.one(['on', 'off'])}" for name in dice.some(_PORT_SWITCHES, 4)]


def _draw_attributes(dice: Dice, draft: Draft, link: Slot) -> None:
    def line(text: str) -> None:
        draft.keeping.append((IP, text))

    if dice.chance(3) and (alias := dice.draw(_ALIASES)):
        line(f'link set dev {link.name} alias "{alias}"')
    if dice.chance(3):
        line(f"link set dev {link.name} txqueuelen {dice.number(0, 5000)}")
    if dice.chance(2):
        line(f"link set dev {link.name} group {dice.number(0, 99)}")
    if dice.chance(2):
        for altname in dice.draw(st.lists(_ALTNAMES, min_size=1, max_size=3, unique=True)):
            line(f"link property add dev {link.name} altname {altname}{draft.links.index(link)}")
    flags = ["promisc on", "allmulticast on", "multicast off", "dynamic on"]
    if link.kind == "veth":
        flags.append("arp off")
    if dice.chance(3):
        draft.keeping += [(IP, f"link set dev {link.name} {flag}") for flag in dice.some(flags, 2)]
    if dice.chance(2) and link.kind == "veth":
        line(f"link set dev {link.name} gso_max_size {dice.number(5000, 65536)} gso_max_segs {dice.number(9, 65535)}")


def names() -> st.SearchStrategy[list[str]]:
    """Enough names for the links of a group, which differ in all of it."""
    return st.lists(_NAMES, min_size=30, max_size=30, unique=True)
