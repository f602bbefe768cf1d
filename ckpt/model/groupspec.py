"""What a group shall be that ``ckpt run`` starts: the spec, whether it fits together, and the network it asks for.

Everything that can be told from the words alone is told here, before anything is looked at or made. Nothing here
reads or changes the host.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import NoReturn

from ckpt.errors import UsageError
from ckpt.model.context import Limits, parse_set
from ckpt.model.network import Address, Counterpart, Link, Network, Place, Route
from ckpt.model.process import Isolation
from ckpt.records import dataclass

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""A group's name is its hostname, a file name and part of messages: 63 characters fit into all of them."""

IFNAME_BYTES = 15
"""IFNAMSIZ less the final NUL."""

GROUP_IFNAME = "eth0"
"""What a group's own link is called inside."""

LINK_LOCAL = ipaddress.ip_network("fe80::/10")

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class LinkKind(enum.StrEnum):
    """How the group is attached: a veth pair to a bridge, or a macvlan on a link of the host."""

    VETH = "veth"
    MACVLAN = "macvlan"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """A group to be started.

    ``command`` is an argument list, never a shell's text. ``link`` is the bridge (veth) or the link below (macvlan);
    without it the group has only lo. ``addresses`` have a prefix length; ``gateways`` are one per family.
    In a context (isolation ``ipset``) the addresses are its set, in their order, with ports if they have any, and
    ``link`` is where those are put that the host does not have; ``limits`` are for contexts alone, and so is
    ``root_may_leave``: that it be run also where nothing keeps a process of root's in its context.
    ``environment`` is the whole of it. ``workdir`` is ``/`` unless said otherwise: a directory that every host has.
    """

    name: str
    command: Sequence[str]
    isolation: Isolation = Isolation.NETNS
    link: str | None = None
    kind: LinkKind = LinkKind.VETH
    addresses: Sequence[str] = ()
    gateways: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    umask: int = 0o022
    limits: Limits = field(default_factory=Limits)
    root_may_leave: bool = False


def check_spec(spec: GroupSpec) -> None:
    """UsageError when the spec does not fit together; its code says which part."""
    if not NAME_PATTERN.fullmatch(spec.name):
        _refuse(
            "name-invalid",
            f"{spec.name!r} cannot be a group's name",
            hint="use 1 to 63 of a-z, 0-9, '_', '.' and '-', with a letter or a digit first",
        )
    if spec.name.isdecimal():
        _refuse(
            "name-invalid", f"{spec.name!r} cannot be a group's name", hint="a number alone would be taken for a PID"
        )
    if not spec.command or not spec.command[0]:
        _refuse("command-missing", "there is no command to run", hint="ckpt run [OPTIONS] -- COMMAND [ARGUMENTS]")
    if any("\0" in word for word in (*spec.command, *spec.environment, *spec.environment.values())):
        _refuse("command-invalid", "arguments and environment cannot hold a NUL character")
    if not spec.workdir.startswith("/"):
        _refuse("workdir-relative", f"the working directory {spec.workdir!r} is not an absolute path")
    if spec.isolation is Isolation.IPSET:
        _check_context(spec)
        return
    if spec.limits != Limits():
        _refuse("limits-context", "limits belong to a context", hint="add --isolation ipset and an --address")
    if spec.root_may_leave:
        _refuse("leave-context", "only a context can be left", hint="leave out --root-may-leave")
    _check_link(spec)
    interfaces = [parse_address(text) for text in spec.addresses]
    doubled = next(
        (item for place, item in enumerate(interfaces) if item.ip in {i.ip for i in interfaces[:place]}), None
    )
    if doubled is not None:
        _refuse("address-doubled", f"the address {doubled.ip} is given twice")
    for place, gateway in enumerate(spec.gateways):
        _check_gateway(gateway, interfaces, spec.gateways[:place])


def parse_address(text: str) -> Interface:
    """The address ``text`` (``10.0.0.2/24``); UsageError when a group cannot have it."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not an address",
            code="address-invalid",
            details=str(error),
            hint="like 10.0.0.2/24 or fd00::2/64",
        ) from error
    address = interface.ip
    if "/" not in text:
        _refuse("address-invalid", f"the address {text} has no prefix length", hint="like 10.0.0.2/24 or fd00::2/64")
    if "%" in text or address.is_multicast or address.is_unspecified or address.is_loopback:
        _refuse("address-invalid", f"{text} cannot be the address of a link")
    network = interface.network
    if address.version == 4 and network.prefixlen < 31 and address in (network[0], network[-1]):
        _refuse("address-invalid", f"{text} is the network's own or its broadcast address, not a host's")
    return interface


def wanted_network(spec: GroupSpec, outside_ifname: str, mac: str) -> Network:
    """The namespace that ``spec`` asks for; ``outside_ifname`` names the host's end of a veth pair.

    ``mac`` is that of the group's link: chosen by the caller, because the group's link-local address is made of it.
    """
    loopback = Link(ifname="lo", kind="loopback", flags=("up",))
    if spec.link is None:
        return Network(links=(loopback,))
    if spec.kind is LinkKind.VETH:
        outside = Counterpart(place=Place.CALLER, ifname=outside_ifname, kind="veth", master=spec.link, up=True)
        link = Link(ifname=GROUP_IFNAME, kind="veth", mac=mac, counterpart=outside)
    else:
        below = Counterpart(place=Place.CALLER, ifname=spec.link)
        link = Link(ifname=GROUP_IFNAME, kind="macvlan", mac=mac, counterpart=below, options={"mode": "bridge"})
    interfaces = [parse_address(text) for text in spec.addresses]
    # What the kernel would add by itself, were the namespace not filled from records; a host without IPv6 has none.
    if any(interface.version == 6 for interface in interfaces):
        interfaces.append(_link_local(mac))
    return Network(
        links=(loopback, link),
        addresses=tuple(_address(interface) for interface in dict.fromkeys(interfaces)),
        routes=tuple(_default_route(text) for text in spec.gateways),
    )


def _link_local(mac: str) -> ipaddress.IPv6Interface:
    """The link-local address of a link with ``mac`` (RFC 4291, appendix A: modified EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Interface((LINK_LOCAL.network_address.packed[:8] + identifier, 64))


def _address(interface: Interface) -> Address:
    scope = "link" if interface.ip in LINK_LOCAL else "global"
    # A group's IPv6 addresses are probed for by ckpt before it starts; duplicate address detection would keep the
    # group from binding to them for its first second.
    flags = ("nodad",) if interface.version == 6 else ()
    broadcast = ""
    if interface.version == 4 and interface.network.prefixlen < 31:
        broadcast = str(interface.network[-1])
    return Address(ifname=GROUP_IFNAME, address=str(interface), broadcast=broadcast, scope=scope, flags=flags)


def _default_route(gateway: str) -> Route:
    address = ipaddress.ip_address(gateway)
    return Route(destination="0.0.0.0/0" if address.version == 4 else "::/0", gateway=str(address), ifname=GROUP_IFNAME)


def _check_context(spec: GroupSpec) -> None:
    if not parse_set(spec.addresses):
        _refuse("address-needed", "a context needs an address", hint="name one that this host has with --address")
    if spec.gateways or spec.kind is not LinkKind.VETH:
        _refuse(
            "isolation-network",
            "--isolation ipset leaves the group in the host's network, with the host's routes",
            hint="leave out --gateway and --kind, or the isolation",
        )
    if spec.link is not None and not _is_ifname(spec.link):
        _refuse("link-invalid", f"{spec.link!r} cannot be the name of a link")
    limits = spec.limits
    if any(value is not None and value < 1 for value in (limits.tasks, limits.data)) or (limits.memlock or 0) < 0:
        _refuse("limit-invalid", "a limit is a number above zero")
    if limits.nice is not None and not -20 <= limits.nice <= 19:
        _refuse("limit-invalid", f"{limits.nice} is not a nice value", hint="from -20 to 19")


def _check_link(spec: GroupSpec) -> None:
    if spec.isolation is Isolation.NONE and (spec.link or spec.addresses or spec.gateways):
        _refuse(
            "isolation-network",
            "--isolation none leaves the group in the host's network",
            hint="leave out --link, --address and --gateway, or the isolation",
        )
    if spec.link is None and (spec.addresses or spec.gateways):
        _refuse("link-needed", "addresses and gateways need a link", hint="name a bridge with --link")
    if spec.link is None and spec.kind is not LinkKind.VETH:
        _refuse("link-needed", f"a {spec.kind} needs a link below it", hint="name it with --link")
    if spec.link is not None and not _is_ifname(spec.link):
        _refuse("link-invalid", f"{spec.link!r} cannot be the name of a link")


def _is_ifname(name: str) -> bool:
    fits = 0 < len(name.encode(errors="surrogateescape")) <= IFNAME_BYTES
    return fits and name not in (".", "..") and not any(char in "/:" or char.isspace() for char in name)


def _check_gateway(text: str, interfaces: Sequence[Interface], earlier: Sequence[str]) -> None:
    try:
        gateway = ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a gateway's address", code="gateway-invalid", details=str(error)) from error
    if any(ipaddress.ip_address(other).version == gateway.version for other in earlier):
        _refuse("gateway-doubled", f"there is a second gateway for IPv{gateway.version}", hint="one for each family")
    if any(interface.ip == gateway for interface in interfaces):
        _refuse("gateway-invalid", f"the gateway {text} is an address of the group itself")
    reachable = gateway in LINK_LOCAL or any(gateway in interface.network for interface in interfaces)
    if not reachable:
        _refuse(
            "gateway-unreachable",
            f"the gateway {text} is in no subnet of the group",
            hint="give an --address whose prefix holds the gateway",
        )


def _refuse(code: str, brief: str, hint: str | None = None) -> NoReturn:
    raise UsageError(brief, code=code, hint=hint)
