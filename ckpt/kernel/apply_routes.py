"""Carry out the steps of a plan that are about addresses and ways: addresses, next hops, routes, rules, neighbours.

The kernel makes some of them by itself, a moment later and in workers: that is waited for, so that what is missing and
what is too much is found out about something that stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from ckpt.errors import NetworkError
from ckpt.kernel import (
    rtnl,
    rtnl_addresses,
    rtnl_labels,
    rtnl_link_changes,
    rtnl_links,
    rtnl_neighbours,
    rtnl_nexthops,
    rtnl_routes,
    rtnl_rules,
)
from ckpt.kernel.apply_target import Target, naming
from ckpt.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, KernelRefusal
from ckpt.model.network import Address, Route
from ckpt.plan import differences, steps

_SETTLING = 5.0
_CARRIERS = 1.5
_LOOPBACK = 1  # the index, whatever it is called (LOOPBACK_IFINDEX, include/net/net_namespace.h)


class RouteMaker:
    """Gives the links of one namespace addresses, and the namespace its routes."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._fresh: list[Address] = []

    def _await_carriers(self) -> None:
        """Wait until the kernel's worker has told IPv6 of every carrier; the routes that come of it would come later.

        It looks at once at links that stand on others and at those that are asked for one by one (rtnl_getlink, Linux
        6.8, facd15dfd691), and within a second at all; a link that stays dormant is not waited for any longer.
        """
        deadline = time.monotonic() + _CARRIERS
        while waited_for := rtnl_links.unpropagated(self._target.inside):
            for index in waited_for:
                rtnl_links.read_one(self._target.inside, ifindex=index)
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)

    def set_addresses(self, step: steps.SetAddresses) -> None:
        """Add the addresses that are missing, and take away what is too much; see ``await_addresses``."""
        self._await_carriers()
        now = rtnl.read_addresses(self._target.inside, self._target.names())
        extra, missing = differences.difference(step.addresses, now, only=step.only)
        for address in extra:
            with naming("address-refused", f"address {address.address} of {address.ifname}", "remove"):
                self._target.inside.request(
                    rtnl_addresses.RTM_DELADDR, rtnl_addresses.encode_address(address, self._target.indices)
                )
        added = differences.order_addresses(missing)
        bodies = (rtnl_addresses.encode_address(address, self._target.indices) for address in added)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        said = self._target.inside.requests([(rtnl_addresses.RTM_NEWADDR, body, flags) for body in bodies])
        for address, refusal in zip(added, said, strict=True):
            if refusal is not None:
                with naming("address-refused", f"address {address.address} of {address.ifname}", "add"):
                    raise refusal
        self._fresh += [address for address in added if ":" in address.address]

    def await_addresses(self) -> None:
        """Wait until the kernel has finished with the IPv6 addresses that were added, which it does in a worker.

        It takes one after the other: as long as it has not come to the last, there is no need to list a thousand.
        """
        added, self._fresh = self._fresh, []
        if not added:
            return
        deadline = time.monotonic() + _SETTLING
        while self._is_tentative(added[-1]) or rtnl.has_tentative(self._target.inside):
            if time.monotonic() > deadline:
                raise NetworkError(
                    "IPv6 addresses stay tentative",
                    code="address-tentative",
                    details=", ".join(address.address for address in added),
                )
            time.sleep(0.001)
        # The worker holds the lock that this waits for, until the address's own route is there too.
        rtnl_link_changes.touch(self._target.inside, _LOOPBACK)

    def _is_tentative(self, address: Address) -> bool:
        request = rtnl_addresses.asking(address, self._target.indices)
        with contextlib.suppress(KernelRefusal):  # there is none any more, or this kernel lists only all
            found = self._target.inside.request(rtnl_addresses.RTM_GETADDR, request)
            return any(rtnl_addresses.is_tentative(body) for _, body in found)
        return False

    def set_nexthops(self, step: steps.SetNexthops) -> None:
        """Make the next hops that routes name by number."""
        for nexthop in step.nexthops:
            with naming("nexthop-refused", f"nexthop object {nexthop.id}", "make"):
                try:
                    rtnl_nexthops.make(self._target.inside, nexthop, self._target.indices)
                except KernelRefusal as error:
                    if not _is_unreachable(error) or not nexthop.gateway:
                        raise
                    with self._gateways_on_link([(nexthop.gateway, nexthop.ifname)]):
                        rtnl_nexthops.make(self._target.inside, nexthop, self._target.indices)

    def set_label_routes(self, step: steps.SetLabelRoutes) -> None:
        """Add the routes of labels."""
        for route in step.routes:
            with naming("route-refused", f"route of label {route.label}", "add"):
                rtnl_labels.make(self._target.inside, route, self._target.indices)

    def set_routes(self, step: steps.SetRoutes) -> None:
        """Add the routes that are missing, and take away what is too much.

        Those of IPv6 stand on addresses at which the kernel still is (``await_addresses``): meanwhile those of IPv4 are
        made, unless they lead through IPv6.
        """
        four = tuple(route for route in step.routes if ":" not in route.destination)
        if any(map(differences.leads_through_ipv6, four)):
            self.await_addresses()
            self._set_routes((4, 6), step.routes, only=step.only)
            return
        self._set_routes((4,), four, only=step.only)
        self.await_addresses()
        self._set_routes((6,), tuple(route for route in step.routes if ":" in route.destination), only=step.only)

    def _set_routes(self, families: Sequence[int], wanted: Sequence[Route], *, only: bool) -> None:
        extra, missing = self._await_own_routes(families, wanted, only=only)
        for routes in differences.apart(differences.order_routes(missing)):
            said = self._target.inside.requests(self._route_message(route) for route in routes)
            for route, refusal in zip(routes, said, strict=True):
                if refusal is not None:
                    # Asked again by itself: another that was refused may have been what it needs.
                    with naming("route-refused", f"route to {route.destination} in table {route.table}", "add"):
                        self._add_route(route, gateway_was_there=only)
        for route in extra:
            with naming("route-refused", f"route to {route.destination} in table {route.table}", "remove"):
                self._target.request_unless_gone(
                    rtnl_routes.RTM_DELROUTE, rtnl_routes.encode_route(route, self._target.indices), errno.ESRCH
                )

    def _await_own_routes(
        self, families: Sequence[int], wanted: Sequence[Route], *, only: bool
    ) -> tuple[tuple[Route, ...], tuple[Route, ...]]:
        """What is too much and what is missing of ``wanted``, in its order, once the kernel has made its own routes.

        It makes them in a worker (addrconf_dad_work), also for an address without detection, and with a metric of 0,
        which nobody else can give: such a route is waited for and not added in its stead.
        """
        deadline = time.monotonic() + _SETTLING
        while True:
            now = rtnl.read_routes(self._target.inside, self._target.names(), [], families=families)
            extra, missing = differences.difference(wanted, now, only=only)
            if time.monotonic() > deadline or not any(differences.is_kernels_own(route) for route in missing):
                return extra, missing
            time.sleep(0.002)

    def _route_message(self, route: Route) -> tuple[int, bytes, int]:
        # IPv4 tells routes to one destination apart only when they are appended; for IPv6 that is the rule anyway.
        flags = NLM_F_CREATE | (NLM_F_APPEND if route.family == 4 else 0)
        return rtnl_routes.RTM_NEWROUTE, rtnl_routes.encode_route(route, self._target.indices), flags

    def _add_route(self, route: Route, *, gateway_was_there: bool) -> None:
        message = self._route_message(route)
        try:
            self._target.inside.request(*message)
        except KernelRefusal as error:
            if error.errno == errno.EEXIST and self._is_there(route):
                return  # one of the kernel's own, which it makes for an address some time after it
            if not gateway_was_there or not _is_unreachable(error) or not self._gateways(route):
                raise
            with self._gateways_on_link(self._gateways(route)):
                self._target.inside.request(*message)

    def _is_there(self, route: Route) -> bool:
        now = rtnl.read_routes(self._target.inside, self._target.names(), [])
        return not differences.difference((route,), now, only=True)[1]

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
                body = rtnl_routes.encode_route(near, self._target.indices)
                with contextlib.suppress(KernelRefusal):
                    self._target.inside.request(rtnl_routes.RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_EXCL)
                    temporary.callback(self._target.request_unless_gone, rtnl_routes.RTM_DELROUTE, body, errno.ESRCH)
            yield

    def set_rules(self, step: steps.SetRules) -> None:
        """Add the rules that are missing, and take away what is too much."""
        extra, missing = differences.difference(step.rules, rtnl.read_rules(self._target.inside, []), only=step.only)
        for rule in missing:
            with naming("rule-refused", f"IPv{rule.family} rule {rule.priority}", "add"):
                self._target.inside.request(
                    rtnl_rules.RTM_NEWRULE, rtnl_rules.encode_rule(rule), NLM_F_CREATE | NLM_F_EXCL
                )
        for rule in extra:
            with naming("rule-refused", f"IPv{rule.family} rule {rule.priority}", "remove"):
                self._target.inside.request(rtnl_rules.RTM_DELRULE, rtnl_rules.encode_rule(rule))

    def set_neighbours(self, step: steps.SetNeighbours) -> None:
        """Set the neighbours and proxies.

        What is not permanent the kernel forgets when it tells of a link without a carrier, and it may have that still
        to do, since the link was made: asked for the link, it does it at once (rtnl_getlink, Linux 6.8).
        """
        if any(neighbour.proxy or neighbour.state != "permanent" for neighbour in step.neighbours):
            for index in rtnl_links.without_carrier(self._target.inside):
                rtnl_links.read_one(self._target.inside, ifindex=index)
        for neighbour in step.neighbours:
            with naming("neighbour-refused", f"neighbour {neighbour.address} on {neighbour.ifname}", "add"):
                body = rtnl_neighbours.encode_neighbour(neighbour, self._target.indices)
                self._target.inside.request(rtnl_neighbours.RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE)


def _is_unreachable(error: KernelRefusal) -> bool:
    return error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)
