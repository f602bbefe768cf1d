"""Which links have the same per-device sysctls: told by netlink for all of them at once.

A link has some hundred and thirty files below /proc/sys, most of which hold what every other link has. rtnetlink shows
the numbers behind nearly all of them (IFLA_INET_CONF, IFLA_INET6_CONF, NDTA_PARMS): where two links have the same
number, the files hold the same text, and only one of them has to be opened. The numbers are never taken for the text,
because files differ in their units. What netlink does not show has no mark here and is read from its own file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from ckpt.kernel.layouts import Layouts
from ckpt.kernel.netlink import Netlink, attribute, number, parse, text, u32

Marks = Mapping[str, int]
"""By the name of a sysctl: the number behind it. Links that are alike share one mapping."""

_RTM_GETLINK, _RTM_GETNEIGHTBL = 18, 66
_IFINFO = struct.Struct("=BxHiII")
_NDTMSG = struct.Struct("=BxH")
_IFLA_IFNAME, _IFLA_AF_SPEC = 3, 26
_WITHOUT_STATISTICS = attribute(29, u32(8))  # IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS
_AF_INET, _AF_INET6 = 2, 10
_IFLA_INET_CONF, _IFLA_INET6_CONF = 1, 2
_NDTA_NAME, _NDTA_PARMS = 1, 6
_NDTPA_IFINDEX = 1
_OF_LINK = struct.pack("=HH", 8, _NDTPA_IFINDEX)

# IPV4_DEVCONF_… of linux/ip.h, less one.
_INET = """
    forwarding mc_forwarding proxy_arp accept_redirects secure_redirects send_redirects shared_media rp_filter
    accept_source_route bootp_relay log_martians tag arp_filter medium_id disable_xfrm disable_policy
    force_igmp_version arp_announce arp_ignore promote_secondaries arp_accept arp_notify accept_local src_valid_mark
    proxy_arp_pvlan route_localnet igmpv2_unsolicited_report_interval igmpv3_unsolicited_report_interval
    ignore_routes_with_linkdown drop_unicast_in_l2_multicast drop_gratuitous_arp bc_forwarding arp_evict_nocarrier
"""

# DEVCONF_… of linux/ipv6.h. The kernel leaves the place of stable_secret empty: it is no number.
_INET6 = """
    forwarding hop_limit mtu accept_ra accept_redirects autoconf dad_transmits router_solicitations
    router_solicitation_interval router_solicitation_delay use_tempaddr temp_valid_lft temp_prefered_lft
    regen_max_retry max_desync_factor max_addresses force_mld_version accept_ra_defrtr accept_ra_pinfo
    accept_ra_rtr_pref router_probe_interval accept_ra_rt_info_max_plen proxy_ndp optimistic_dad accept_source_route
    mc_forwarding disable_ipv6 accept_dad force_tllao ndisc_notify mldv1_unsolicited_report_interval
    mldv2_unsolicited_report_interval suppress_frag_ndisc accept_ra_from_local use_optimistic accept_ra_mtu -
    use_oif_addrs_only accept_ra_min_hop_limit ignore_routes_with_linkdown drop_unicast_in_l2_multicast
    drop_unsolicited_na keep_addr_on_down router_solicitation_max_interval seg6_enabled seg6_require_hmac
    enhanced_dad addr_gen_mode disable_policy accept_ra_rt_info_min_plen ndisc_tclass rpl_seg_enabled
    ra_defrtr_metric ioam6_enabled ioam6_id ioam6_id_wide ndisc_evict_nocarrier accept_untracked_na accept_ra_min_lft
    force_forwarding
"""

# NDTPA_… of linux/neighbour.h, by sysctl: two files may show one number in two units.
_NEIGH = {
    "base_reachable_time": 4,
    "base_reachable_time_ms": 4,
    "retrans_time": 5,
    "retrans_time_ms": 5,
    "gc_stale_time": 6,
    "delay_first_probe_time": 7,
    "app_solicit": 9,
    "ucast_solicit": 10,
    "mcast_solicit": 11,
    "anycast_delay": 12,
    "proxy_delay": 13,
    "proxy_qlen": 14,
    "locktime": 15,
    "unres_qlen": 16,
    "unres_qlen_bytes": 16,
    "mcast_resolicit": 17,
    "interval_probe_time_ms": 19,
}
_NEIGH_NUMBERS = tuple(sorted({*_NEIGH.values()}))
_CONF, _CONF6 = "net/ipv4/conf", "net/ipv6/conf"
_NEIGH_TREES = {"arp_cache": "net/ipv4/neigh", "ndisc_cache": "net/ipv6/neigh"}
TREES = frozenset({_CONF, _CONF6, *_NEIGH_TREES.values()})
"""The directories below /proc/sys of which netlink says which links they hold."""


def read_marks(netns: int) -> dict[tuple[str, str], Marks]:
    """By tree (``net/ipv6/conf``) and link, the numbers behind the link's sysctls."""
    with Netlink(netns=netns) as connection:
        names: dict[int, str] = {}
        found = dict(_confs(connection, names))
        found.update(_neighs(connection, names))
    return found


def _confs(connection: Netlink, names: dict[int, str]) -> Iterator[tuple[tuple[str, str], Marks]]:
    known: dict[tuple[str, bytes], Marks] = {}
    layouts = Layouts(_IFINFO.size)
    for _, body in connection.dump(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + _WITHOUT_STATISTICS):
        attributes = layouts.parse(body)
        ifname = text(attributes[_IFLA_IFNAME])
        names[_IFINFO.unpack_from(body)[2]] = ifname
        families = parse(attributes.get(_IFLA_AF_SPEC, b""))
        four = parse(families.get(_AF_INET, b"")).get(_IFLA_INET_CONF, b"")
        six = parse(families.get(_AF_INET6, b"")).get(_IFLA_INET6_CONF, b"")
        for tree, listed, data in ((_CONF, _INET, four), (_CONF6, _INET6, six)):
            if (tree, data) not in known:
                known[tree, data] = _numbered(listed, data)
            if data:
                yield (tree, ifname), known[tree, data]


def _numbered(names: str, data: bytes) -> Marks:
    # An older kernel shows fewer, a newer one more; both lists only ever grow at their end.
    return dict(zip(names.split(), struct.unpack_from(f"={len(data) // 4}i", data), strict=False))


def _neighs(connection: Netlink, names: Mapping[int, str]) -> Iterator[tuple[tuple[str, str], Marks]]:
    alike: dict[bytes, Marks] = {}
    known: dict[tuple[bytes, ...], Marks] = {}
    for _, body in connection.dump(_RTM_GETNEIGHTBL, _NDTMSG.pack(0, 0)):
        attributes = parse(body, _NDTMSG.size)
        tree = _NEIGH_TREES.get(text(attributes.get(_NDTA_NAME, b"")))
        parameters = attributes.get(_NDTA_PARMS, b"")
        # Those of a link begin with its index (neightbl_fill_parms, net/core/neighbour.c).
        if tree is None or parameters[:4] != _OF_LINK or (ifname := names.get(number(parameters[4:8]))) is None:
            continue
        rest = parameters[8:]
        if rest not in alike:
            values = parse(rest)
            numbers = tuple([values.get(kind, b"") for kind in _NEIGH_NUMBERS])
            if numbers not in known:
                known[numbers] = {name: number(values[kind]) for name, kind in _NEIGH.items() if kind in values}
            alike[rest] = known[numbers]
        yield (tree, ifname), alike[rest]
