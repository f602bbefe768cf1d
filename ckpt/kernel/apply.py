"""Carry out the steps of a plan in a namespace.

Each step is one function. What it makes inside the namespace needs no undo, because the namespace goes with its last
descriptor; what it makes outside (the host's end of a veth) is undone by the caller's stack. A refusal of the kernel
becomes a NetworkError that names the object and carries the kernel's own words. The host's namespace is touched only
by name and only for a link's counterpart.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from ckpt import plan
from ckpt.errors import NetworkError
from ckpt.kernel import (
    conntrack,
    ethtool,
    expectations,
    filtering,
    fou,
    isatap,
    link_multicast,
    nft,
    rtnl,
    rtnl_bond,
    rtnl_bridge,
    rtnl_labels,
    rtnl_links,
    rtnl_nexthops,
    rtnl_routes,
    rtnl_taken,
    rtnl_tc,
    sysctl,
    team,
    tun,
    wireguard,
    xfrm,
)
from ckpt.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, KernelRefusal, Netlink
from ckpt.kernel.netns import open_own
from ckpt.kernel.rtnl_links import LinkReader, RawLink
from ckpt.model.network import PAIRED, Address, Counterpart, Link, Place, Route

_SETTLING = 5.0
_CARRIERS = 1.5


def apply(netns: int, steps: Sequence[plan.Step], undo: ExitStack) -> None:
    """Carry out ``steps`` in ``netns``; what they make outside is undone by ``undo``.

    Raises NetworkError that names the object.
    """
    with Netlink(netns=netns) as inside, Netlink() as outside:
        _Applier(netns, inside, outside, undo).run(steps)


def apply_group(spaces: Mapping[str, int], steps: Sequence[tuple[str, plan.Step]], undo: ExitStack) -> None:
    """Carry out each of ``steps`` in the namespace of ``spaces`` that it names; see ``apply``."""
    with ExitStack() as sockets:
        outside = sockets.enter_context(Netlink())
        appliers: dict[str, _Applier] = {}
        for key, netns in spaces.items():
            inside = sockets.enter_context(Netlink(netns=netns))
            appliers[key] = _Applier(netns, inside, outside, undo, spaces)
        for key, run in itertools.groupby(steps, key=lambda step: step[0]):
            appliers[key].run([step for _, step in run])


@contextlib.contextmanager
def _naming(code: str, subject: str, verb: str = "make") -> Iterator[None]:
    try:
        yield
    except KernelRefusal as error:
        raise NetworkError(f"cannot {verb} the {subject}", code=code, details=error.strerror) from error


class _Applier:
    def __init__(
        self,
        netns: int,
        inside: Netlink,
        outside: Netlink,
        undo: ExitStack,
        spaces: Mapping[str, int] | None = None,
    ) -> None:
        self._netns = netns
        self._inside = inside
        self._outside = outside
        self._undo = undo
        self._spaces = spaces or {}
        self._indices: dict[str, int] = {}

    def run(self, steps: Sequence[plan.Step]) -> None:
        self._learn_indices()
        for step in steps:
            match step:
                case plan.WriteSysctls():
                    sysctl.write(self._netns, step.values)
                case plan.MakeLink():
                    self._make_link(step)
                case plan.PlaceCounterpart():
                    self._place_counterpart(step.link)
                case plan.Enslave():
                    with _naming("link-master", f"link {step.ifname} a port of {step.master}"):
                        self._enslave(step)
                case plan.AdjustLinks():
                    self._adjust_links(step)
                case plan.BringUp():
                    self._bring_up(step)
                case plan.TakeDown():
                    with _naming("link-refused", f"link {step.link.ifname}", "take down"):
                        rtnl_links.set_down(self._inside, self._indices[step.link.ifname])
                case plan.ChooseActive():
                    self._choose_active(step.link)
                case plan.SetAddresses():
                    self._set_addresses(step)
                case plan.SetTraffic():
                    self._set_traffic(step)
                case plan.SetBridging():
                    self._set_bridging(step)
                case plan.JoinMulticast():
                    self._join_multicast(step)
                case plan.SetNexthops():
                    self._set_nexthops(step)
                case plan.SetLabelRoutes():
                    self._set_label_routes(step)
                case plan.SetRoutes():
                    self._set_routes(step)
                case plan.SetRules():
                    self._set_rules(step)
                case plan.SetNeighbours():
                    self._set_neighbours(step)
                case plan.LoadNftables():
                    nft.load(self._netns, step.tables)
                case plan.LoadFiltering():
                    filtering.load_filtering(self._netns, step.filtering)
                case plan.CreateConntrack():
                    conntrack.create_entries(self._netns, step.entries)
                    expectations.create_expectations(self._netns, step.expectations)
                case plan.SetTeamModes():
                    team.set_modes(self._netns, step.teams, self._indices)
                case plan.SetTeams():
                    team.set_options(self._netns, step.teams, self._indices)
                case plan.SetWireguard():
                    wireguard.apply(self._netns, step.devices, self._indices)
                case plan.OpenFou():
                    fou.open_ports(self._netns, step.ports, self._indices)
                case plan.AddIsatapRouters():
                    isatap.add_routers(self._netns, step.routers)
                case plan.SetIpsec():
                    xfrm.apply_ipsec(self._netns, step.ipsec, self._indices)
                case plan.SettleSysctls():
                    self._settle_sysctls(step)
                case plan.SetTokens():
                    self._set_tokens(step)

    # ---- links ----------------------------------------------------------------------------------------------------

    def _learn_indices(self) -> dict[int, RawLink]:
        raw = rtnl_links.read_raw(self._inside)
        self._indices = {link.ifname: index for index, link in raw.items()}
        return raw

    def _names(self) -> dict[int, str]:
        return {index: ifname for ifname, index in self._indices.items()}

    def _make_link(self, step: plan.MakeLink) -> None:
        link, peer = step.link, step.peer
        other = link.counterpart
        outside = f" with {other.ifname} outside" if other and other.place is Place.CALLER and other.ifname else ""
        with _naming("link-refused", f"link {link.ifname} of kind {link.kind}{outside}"):
            if link.kind == "tun":
                tun.make(self._netns, link)
            elif step.from_outside:
                self._make_on(self._outside, link, 0)
            elif other is None or other.place is Place.INSIDE:
                lower = 0 if peer is not None or other is None else self._indices.get(other.ifname, other.ifindex)
                if peer is not None:
                    rtnl_links.make_pair(self._inside, link, peer, self._netns)
                else:
                    rtnl_links.make(self._inside, link, lower=lower)
            elif other.place is Place.ELSEWHERE:
                self._make_across(link, other, peer)
            else:
                self._make_to_caller(link, other)
        for one in (link, peer) if peer else (link,):
            # An index that is asked for is had, or the link is refused.
            made = None if one.ifindex else rtnl_links.read_one(self._inside, ifname=one.ifname)
            self._indices[one.ifname] = made.index if made else one.ifindex

    def _make_to_caller(self, link: Link, other: Counterpart) -> None:
        """Make a link whose counterpart is in the caller's namespace; asked for from inside, see ``_make_across``."""
        own = open_own()
        try:
            if link.kind in PAIRED:
                # The host chooses the index of its own end, but for a netkit that is made from there: without an index
                # of that end it disregards ours (netkit_new_link, drivers/net/netkit.c).
                chosen = max(rtnl_links.read_raw(self._outside)) + 1 if rtnl_links.is_second(link) else 0
                rtnl_links.make_pair(self._inside, link, replace(other, ifindex=chosen), own)
            else:
                self._make_on(self._outside, link, self._outside_index(other.ifname, f"{link.ifname} stands on it"))
        finally:
            os.close(own)

    def _make_on(self, there: Netlink, link: Link, lower: int) -> None:
        """Make a link on ``lower`` (or 0), which lies in the namespace of ``there``, and move it inside.

        A link that stands on another is made where that one is, whatever is asked for, and its index must be free there
        as well; only a move gives it the one it shall have (IFLA_NEW_IFINDEX, Linux 5.13, eeb85a14ee34).
        """
        passing = f"ckpt{secrets.token_hex(4)}"
        rtnl_links.make(there, replace(link, ifname=passing, ifindex=0), lower=lower)
        made = rtnl_links.read_one(there, ifname=passing)
        if made is None:
            raise NetworkError(f"the link {link.ifname} was taken away while it was made", code="link-missing")
        try:
            rtnl_links.move(there, made.index, self._netns, ifname=link.ifname, new_ifindex=link.ifindex)
        except KernelRefusal:
            rtnl_links.delete(there, made.index)
            raise

    def _make_across(self, link: Link, other: Counterpart, peer: Link | None) -> None:
        """Make a link whose counterpart is in another namespace of the group.

        Asked for from inside: older kernels look for a link of its name and index where the request comes from.
        """
        there = self._spaces[other.netns]
        if link.kind in PAIRED and peer is not None:
            rtnl_links.make_pair(self._inside, link, peer, there)
            return
        with Netlink(netns=there) as connection:
            lower = rtnl_links.read_one(connection, ifname=other.ifname) if other.ifname else None
            if lower is None and other.ifname:
                raise NetworkError(f"there is no link {other.ifname} in the other namespace", code="link-missing")
            self._make_on(connection, link, lower.index if lower else other.ifindex)

    def _outside_index(self, ifname: str, why: str) -> int:
        found = rtnl_links.read_one(self._outside, ifname=ifname)
        if found is not None:
            return found.index
        raise NetworkError(
            f"there is no link {ifname} here",
            code="link-missing",
            details=why,
            hint="make it, or name another that takes its place",
        )

    def _place_counterpart(self, link: Link) -> None:
        other = link.counterpart
        if other is None:
            return
        here = rtnl_links.read_one(self._inside, ifindex=self._indices[link.ifname])
        outside = rtnl_links.read_one(self._outside, ifindex=here.link) if here else None
        if outside is None:
            raise NetworkError(f"the outside end of {link.ifname} has gone", code="link-missing")
        index = outside.index
        self._undo.callback(_delete_outside, index, outside.ifname)
        with _naming("link-refused", f"outside end of {link.ifname}, {other.ifname},", "set up"):
            if other.master:
                master = self._outside_index(other.master, f"{other.ifname} is a port of it")
                rtnl_links.enslave(self._outside, index, master)
            for address in other.addresses:
                if address.scope != "link":
                    body = rtnl_routes.encode_address(address, {address.ifname: index})
                    self._outside.request(rtnl_routes.RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_REPLACE)
            if other.up:
                rtnl_links.set_up(self._outside, index)

    def _adjust_links(self, step: plan.AdjustLinks) -> None:
        now = self._links()
        for link in step.links:
            with _naming("link-refused", f"link {link.ifname}", "set up"):
                master = now.get(link.master)
                rtnl_links.change(self._inside, now[link.ifname], link, master_kind=master.kind if master else "")
        ethtool.adjust(self._netns, step.links, self._indices)
        if step.joined:
            self._compare_links(step.links)

    def _compare_links(self, links: Sequence[Link]) -> None:
        now = self._links()
        for link in links:
            if link.fallback and not link.up:
                continue  # nobody uses it, and what it is depends on the kernel
            master = now.get(link.master)
            kind = master.kind if master else ""
            if lines := list(rtnl_taken.untaken(link, now[link.ifname], master_kind=kind)):
                raise NetworkError(
                    f"the kernel did not make the link {link.ifname} as it was",
                    code="link-differs",
                    details="; ".join(lines),
                    hint="restore on a newer kernel, or change the link back before the dump",
                )

    def _links(self) -> dict[str, Link]:
        found = LinkReader(self._learn_indices(), caller={}, caller_nsid=-1).links()
        return {link.ifname: link for link in found}

    def _bring_up(self, step: plan.BringUp) -> None:
        with _naming("link-refused", f"link {step.link.ifname}", "bring up"):
            try:
                rtnl_links.set_up(self._inside, self._indices[step.link.ifname])
            except KernelRefusal as error:
                if error.errno != errno.EADDRNOTAVAIL or step.source is None:
                    raise
                with self._lent(step.source):
                    rtnl_links.set_up(self._inside, self._indices[step.link.ifname])

    @contextlib.contextmanager
    def _lent(self, address: Address) -> Iterator[None]:
        """For the time of the block, ``address``; links come up before they get their own."""
        body = rtnl_routes.encode_address(address, self._indices)
        self._inside.request(rtnl_routes.RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_EXCL)
        try:
            yield
        finally:
            self._inside.request(rtnl_routes.RTM_DELADDR, body)

    def _enslave(self, step: plan.Enslave) -> None:
        for ifname in step.below:
            rtnl_links.set_up(self._inside, self._indices[ifname])
        if step.below:
            # A VLAN comes up with the link below it, and no bond takes a link that is up.
            rtnl_links.set_down(self._inside, self._indices[step.ifname])
        rtnl_links.enslave(self._inside, self._indices[step.ifname], self._indices[step.master])

    def _choose_active(self, link: Link) -> None:
        """Have the bond use the port that it used; when that gets no carrier in time, it goes on with its own choice.

        It takes notice of carriers at intervals, and a port without one it refuses.
        """
        deadline = time.monotonic() + _CARRIERS
        while time.monotonic() < deadline:
            try:
                rtnl_links.set_options(self._inside, self._indices[link.ifname], link, (rtnl_bond.ACTIVE,))
                return
            except KernelRefusal:
                time.sleep(0.01)

    # ---- what links carry -----------------------------------------------------------------------------------------

    def _await_carriers(self) -> None:
        """Wait until the kernel's worker has told IPv6 of every carrier; the routes that come of it would come later.

        It looks at once at links that stand on others and within a second at all; a link that stays dormant is not
        waited for any longer.
        """
        deadline = time.monotonic() + _CARRIERS
        while any(link.unpropagated for link in rtnl_links.read_raw(self._inside).values()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)

    def _set_addresses(self, step: plan.SetAddresses) -> None:
        self._await_carriers()
        now = rtnl.read_addresses(self._inside, self._names())
        extra, missing = plan.difference(step.addresses, now, only=step.only)
        for address in extra:
            with _naming("address-refused", f"address {address.address} of {address.ifname}", "remove"):
                self._inside.request(rtnl_routes.RTM_DELADDR, rtnl_routes.encode_address(address, self._indices))
        added = plan.order_addresses(missing)
        bodies = (rtnl_routes.encode_address(address, self._indices) for address in added)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        said = self._inside.requests([(rtnl_routes.RTM_NEWADDR, body, flags) for body in bodies])
        for address, refusal in zip(added, said, strict=True):
            if refusal is not None:
                with _naming("address-refused", f"address {address.address} of {address.ifname}", "add"):
                    raise refusal
        if any(":" in address.address for address in missing):
            self._await_addresses(missing)

    def _await_addresses(self, added: Sequence[Address]) -> None:
        """Wait until the kernel has finished with IPv6 addresses, which it does a moment later, in a worker."""
        deadline = time.monotonic() + _SETTLING
        while rtnl.has_tentative(self._inside):
            if time.monotonic() > deadline:
                raise NetworkError(
                    "IPv6 addresses stay tentative",
                    code="address-tentative",
                    details=", ".join(address.address for address in added if ":" in address.address),
                )
            time.sleep(0.001)
        # The worker holds the lock that this waits for, until the address's own route is there too.
        rtnl_links.touch(self._inside, self._indices["lo"])

    def _set_traffic(self, step: plan.SetTraffic) -> None:
        for subject, request in rtnl_tc.making(step.traffic, self._indices):
            with _naming("tc-refused", subject):
                request(self._inside)
        now = rtnl_tc.TrafficReader(self._inside, self._names(), []).read()
        if lines := rtnl_tc.differing(step.traffic, now):
            raise NetworkError(
                "the kernel did not take traffic control as given", code="tc-differs", details="; ".join(lines)
            )

    def _set_bridging(self, step: plan.SetBridging) -> None:
        for subject, request in rtnl_bridge.making(self._inside, step.bridging, self._indices, only=step.only):
            with _naming("bridge-refused", subject, "set"):
                request()

    def _join_multicast(self, step: plan.JoinMulticast) -> None:
        for group in step.groups:
            with _naming("multicast-refused", f"group {group.mac} of {group.ifname}", "join"):
                link_multicast.join(self._netns, group)

    def _set_nexthops(self, step: plan.SetNexthops) -> None:
        for nexthop in step.nexthops:
            with _naming("nexthop-refused", f"nexthop object {nexthop.id}", "make"):
                try:
                    rtnl_nexthops.make(self._inside, nexthop, self._indices)
                except KernelRefusal as error:
                    if not _is_unreachable(error) or not nexthop.gateway:
                        raise
                    with self._gateways_on_link([(nexthop.gateway, nexthop.ifname)]):
                        rtnl_nexthops.make(self._inside, nexthop, self._indices)

    def _set_label_routes(self, step: plan.SetLabelRoutes) -> None:
        for route in step.routes:
            with _naming("route-refused", f"route of label {route.label}", "add"):
                rtnl_labels.make(self._inside, route, self._indices)

    def _set_routes(self, step: plan.SetRoutes) -> None:
        extra, missing = self._await_own_routes(step)
        for routes in plan.apart(plan.order_routes(missing)):
            said = self._inside.requests([self._route_message(route) for route in routes])
            for route, refusal in zip(routes, said, strict=True):
                if refusal is not None:
                    # Asked again by itself: another that was refused may have been what it needs.
                    with _naming("route-refused", f"route to {route.destination} in table {route.table}", "add"):
                        self._add_route(route, gateway_was_there=step.only)
        for route in extra:
            with _naming("route-refused", f"route to {route.destination} in table {route.table}", "remove"):
                self._request_unless_gone(
                    rtnl_routes.RTM_DELROUTE, rtnl_routes.encode_route(route, self._indices), errno.ESRCH
                )

    def _await_own_routes(self, step: plan.SetRoutes) -> tuple[tuple[Route, ...], tuple[Route, ...]]:
        """What is too much and what is missing, once the kernel has made its own routes for IPv6 addresses.

        It makes them in a worker (addrconf_dad_work), also for an address without detection, and with a metric of 0,
        which nobody else can give: such a route is waited for and not added in its stead.
        """
        deadline = time.monotonic() + _SETTLING
        while True:
            now = rtnl.read_routes(self._inside, self._names(), [])
            extra, missing = plan.difference(step.routes, now, only=step.only)
            if time.monotonic() > deadline or not any(plan.is_kernels_own(route) for route in missing):
                return extra, missing
            time.sleep(0.002)

    def _route_message(self, route: Route) -> tuple[int, bytes, int]:
        # IPv4 tells routes to one destination apart only when they are appended; for IPv6 that is the rule anyway.
        flags = NLM_F_CREATE | (NLM_F_APPEND if route.family == 4 else 0)
        return rtnl_routes.RTM_NEWROUTE, rtnl_routes.encode_route(route, self._indices), flags

    def _add_route(self, route: Route, *, gateway_was_there: bool) -> None:
        message = self._route_message(route)
        try:
            self._inside.request(*message)
        except KernelRefusal as error:
            if error.errno == errno.EEXIST and self._is_there(route):
                return  # one of the kernel's own, which it makes for an address some time after it
            if not gateway_was_there or not _is_unreachable(error) or not self._gateways(route):
                raise
            with self._gateways_on_link(self._gateways(route)):
                self._inside.request(*message)

    def _is_there(self, route: Route) -> bool:
        now = rtnl.read_routes(self._inside, self._names(), [])
        return not plan.difference((route,), now, only=True)[1]

    @staticmethod
    def _gateways(route: Route) -> list[tuple[str, str]]:
        hops = [(route.gateway, route.ifname), *((hop.gateway, hop.ifname) for hop in route.nexthops)]
        return [(gateway, ifname) for gateway, ifname in hops if gateway and ifname]

    @contextlib.contextmanager
    def _gateways_on_link(self, gateways: Sequence[tuple[str, str]]) -> Iterator[None]:
        """For the time of the block, routes to the gateways: the one they were once resolved by has since gone."""
        with ExitStack() as temporary:
            for gateway, ifname in gateways:
                prefix = f"{gateway}/{128 if ':' in gateway else 32}"
                near = Route(
                    destination=prefix, ifname=ifname, scope="global" if ":" in gateway else "link", priority=1
                )
                body = rtnl_routes.encode_route(near, self._indices)
                with contextlib.suppress(KernelRefusal):
                    self._inside.request(rtnl_routes.RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_EXCL)
                    temporary.callback(self._request_unless_gone, rtnl_routes.RTM_DELROUTE, body, errno.ESRCH)
            yield

    def _set_rules(self, step: plan.SetRules) -> None:
        extra, missing = plan.difference(step.rules, rtnl.read_rules(self._inside, []), only=step.only)
        for rule in missing:
            with _naming("rule-refused", f"IPv{rule.family} rule {rule.priority}", "add"):
                self._inside.request(rtnl_routes.RTM_NEWRULE, rtnl_routes.encode_rule(rule), NLM_F_CREATE | NLM_F_EXCL)
        for rule in extra:
            with _naming("rule-refused", f"IPv{rule.family} rule {rule.priority}", "remove"):
                self._inside.request(rtnl_routes.RTM_DELRULE, rtnl_routes.encode_rule(rule))

    def _set_neighbours(self, step: plan.SetNeighbours) -> None:
        for neighbour in step.neighbours:
            with _naming("neighbour-refused", f"neighbour {neighbour.address} on {neighbour.ifname}", "add"):
                body = rtnl_routes.encode_neighbour(neighbour, self._indices)
                self._inside.request(rtnl_routes.RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE)

    def _request_unless_gone(self, kind: int, body: bytes, gone: int) -> None:
        try:
            self._inside.request(kind, body)
        except KernelRefusal as error:
            if error.errno != gone:
                raise

    # ---- sysctls --------------------------------------------------------------------------------------------------

    def _set_tokens(self, step: plan.SetTokens) -> None:
        for ifname, token in step.tokens.items():
            with _naming("link-refused", f"token of {ifname}", "set"):
                rtnl_links.set_token(self._inside, self._indices[ifname], token)

    def _settle_sysctls(self, step: plan.SettleSysctls) -> None:
        now = sysctl.read(self._netns)
        changed = sysctl.unsettled(step.sysctls, now, step.mtus)
        # stable_secret has no value to be read until it is set.
        changed |= {key: value for key, value in step.sysctls.items() if now.get(key) is None and _has_no_template(key)}
        modes = _take_modes(changed, self._indices)
        sysctl.write(self._netns, changed)
        for ifname, mode in modes.items():
            with _naming("link-refused", f"link {ifname}", "set up"):
                rtnl_links.set_addr_gen_mode(self._inside, self._indices[ifname], mode)


def _is_unreachable(error: KernelRefusal) -> bool:
    return error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)


def _delete_outside(index: int, ifname: str) -> None:
    """Undo: the end of the pair that is in the caller's namespace goes, unless the pair has gone already."""
    with Netlink() as outside:
        raw = rtnl_links.read_one(outside, ifindex=index)
        if raw is not None and raw.ifname == ifname and raw.kind in PAIRED:
            with contextlib.suppress(KernelRefusal):
                rtnl_links.delete(outside, index)


def _has_no_template(key: str) -> bool:
    return not sysctl.is_template(key) or key.endswith("/stable_secret")


def _take_modes(changed: dict[str, str], indices: Mapping[str, int]) -> dict[str, int]:
    """Take the links' ``addr_gen_mode`` out of ``changed``: written as a sysctl it would make an address at once."""
    modes: dict[str, int] = {}
    for key in [key for key in changed if key.endswith("/addr_gen_mode")]:
        parts = sysctl.device_of(key)
        if parts is not None and parts[1] in indices:
            modes[parts[1]] = int(changed.pop(key))
    return modes
