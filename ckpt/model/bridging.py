"""What bridges and other learning links keep of their own: VLANs, forwarding entries and multicast groups.

What a bridge learns from the wire is no record. What it makes by itself (the entries of its ports' addresses, the
VLAN of a new port) is read as well, so that what somebody took away of it does not come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeVlan:
    """VLANs ``vid`` to ``last`` (0: only the one) of a bridge's port or, where ``ifname`` is a bridge, of itself.

    ``tunnel`` is the tunnel of the first, counting up with them. ``options`` are those of netlink, each as text.
    """

    ifname: str
    vid: int
    last: int = 0
    flags: tuple[str, ...] = ()
    tunnel: int = 0
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VlanOptions:
    """What a bridge keeps of VLANs ``vid`` to ``last`` for all of its ports."""

    ifname: str
    vid: int
    last: int = 0
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VniRange:
    """VNIs ``vni`` to ``last`` (0: only the one) that the vxlan ``ifname`` takes, with the group of these alone."""

    ifname: str
    vni: int
    last: int = 0
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardingEntry:
    """Frames to ``mac`` leave by ``ifname``, and there to ``destination`` where that is a tunnel.

    ``owner`` is ``master`` for an entry of the bridge that ``ifname`` is a port of, ``bridge`` for one that names the
    bridge itself, ``self`` for one of the link's own.
    ``state`` is ``permanent`` (the link's own address, or so taken), ``static``, or ``reachable`` for one that ages.
    """

    ifname: str
    mac: str
    owner: str
    state: str = "static"
    flags: tuple[str, ...] = ()
    vlan: int = 0
    destination: str = ""
    port: int = 0
    vni: int = 0
    source_vni: int = 0
    via: str = ""
    nexthop: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MulticastEntry:
    """Frames to ``group`` (an address, or a MAC for layer 2) leave a bridge by ``ifname``, one of its ports or itself.

    ``mode`` is the filter mode of ``sources``, ``include`` or ``exclude``. The last five are a vxlan's own.
    """

    bridge: str
    ifname: str
    group: str
    vlan: int = 0
    source: str = ""
    mode: str = ""
    sources: tuple[str, ...] = ()
    protocol: int = 0
    destination: str = ""
    port: int = 0
    vni: int = 0
    source_vni: int = 0
    via: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridging:
    """All of it."""

    vlans: tuple[BridgeVlan, ...] = ()
    vlan_options: tuple[VlanOptions, ...] = ()
    forwarding: tuple[ForwardingEntry, ...] = ()
    multicast: tuple[MulticastEntry, ...] = ()
    vnis: tuple[VniRange, ...] = ()


NO_BRIDGING = Bridging()
