"""The steps of a plan: small records, each of which says what shall be true after it. `kernel/apply` makes it true."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt.model.bridging import Bridging
from ckpt.model.encapsulation import FouPort, IsatapRouter
from ckpt.model.filtering import Filtering
from ckpt.model.forwarding import LabelRoute, NexthopObject
from ckpt.model.ipsec import Ipsec
from ckpt.model.network import (
    Address,
    ConntrackEntry,
    Expectation,
    Link,
    LinkMulticast,
    Neighbour,
    NftTable,
    Route,
    Rule,
)
from ckpt.model.teaming import Team
from ckpt.model.traffic import Traffic
from ckpt.model.wireguard import WireguardDevice
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSysctls:
    """These sysctls have these values."""

    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeLink:
    """``link`` is there, down; ``peer`` is the other of a pair that has both in what is made.

    One that is made ``from_outside`` keeps a part of itself in the caller's namespace.
    """

    link: Link
    peer: Link | None = None
    from_outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceCounterpart:
    """The outside end of the pair ``link`` stands as its counterpart says: in its bridge, with its addresses, up."""

    link: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Enslave:
    """The link ``ifname`` is a port of ``master``; a bond or team brings it up then, which needs those ``below`` up."""

    ifname: str
    master: str
    below: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustLinks:
    """All else that these links keep, but being up, is as recorded; when ``joined``, all links have their masters."""

    links: tuple[Link, ...]
    joined: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTeamModes:
    """These teams have their modes; they have no ports yet."""

    teams: tuple[Team, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTeams:
    """These teams and their ports have their options."""

    teams: tuple[Team, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWireguard:
    """These interfaces have their keys and peers."""

    devices: tuple[WireguardDevice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BringUp:
    """The link is up; without ``source`` on its link, for that moment, the kernel may refuse that."""

    link: Link
    source: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """The link that was called ``was``, which is down, has another name: lo, which nobody makes, may have one."""

    was: str
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeDown:
    """The link is down; a VLAN comes up with the link below it, wanted or not."""

    link: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseActive:
    """The bond ``link`` uses the port that it used, if that one works."""

    link: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAddresses:
    """These addresses are there and at work; with ``only``, no others."""

    addresses: tuple[Address, ...]
    only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTraffic:
    """Traffic control is as recorded."""

    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFou:
    """These UDP ports receive for tunnels."""

    ports: tuple[FouPort, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddIsatapRouters:
    """ISATAP links know these routers."""

    routers: tuple[IsatapRouter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBridging:
    """Bridges and learning links keep what is recorded; with ``only``, nothing else that somebody could take away."""

    bridging: Bridging
    only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinMulticast:
    """The links have joined these groups of their own layer."""

    groups: tuple[LinkMulticast, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetNexthops:
    """These nexthop objects are there."""

    nexthops: tuple[NexthopObject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLabelRoutes:
    """These routes of MPLS are there."""

    routes: tuple[LabelRoute, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRoutes:
    """These routes are there; with ``only``, no others."""

    routes: tuple[Route, ...]
    only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRules:
    """These rules are there; with ``only``, no others."""

    rules: tuple[Rule, ...]
    only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetNeighbours:
    """These permanent neighbours and proxies are there."""

    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadNftables:
    """These tables are loaded."""

    tables: tuple[NftTable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFiltering:
    """What filters and balances beside nftables is in place."""

    filtering: Filtering


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateConntrack:
    """These flows are tracked, and then these expected."""

    entries: tuple[ConntrackEntry, ...]
    expectations: tuple[Expectation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIpsec:
    """These states and policies are there."""

    ipsec: Ipsec


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleSysctls:
    """Every sysctl is as recorded; a link's that is not recorded is as its template; ``mtus`` are by link."""

    sysctls: Mapping[str, str]
    mtus: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTokens:
    """These links have these interface identifiers."""

    tokens: Mapping[str, str]


Step = (
    WriteSysctls
    | Rename
    | MakeLink
    | PlaceCounterpart
    | Enslave
    | AdjustLinks
    | SetTeamModes
    | SetTeams
    | SetWireguard
    | BringUp
    | TakeDown
    | ChooseActive
    | SetAddresses
    | SetTraffic
    | OpenFou
    | AddIsatapRouters
    | SetBridging
    | JoinMulticast
    | SetNexthops
    | SetRoutes
    | SetLabelRoutes
    | SetRules
    | SetNeighbours
    | LoadFiltering
    | LoadNftables
    | CreateConntrack
    | SetIpsec
    | SettleSysctls
    | SetTokens
)
