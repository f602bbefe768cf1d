"""Carry out the steps of a plan in a namespace.

Each step is one function, here or in the module named for what it is about. What it makes inside the namespace needs no
undo, because the namespace goes with its last descriptor; what it makes outside (the host's end of a veth) is undone by
the caller's stack. A refusal of the kernel becomes a NetworkError that names the object and carries the kernel's own
words. The host's namespace is touched only by name and only for a link's counterpart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from ckpt.errors import NetworkError
from ckpt.kernel import (
    conntrack,
    expectations,
    filtering,
    fou,
    isatap,
    link_multicast,
    nft,
    rtnl_bridge,
    rtnl_link_changes,
    rtnl_tc,
    sysctl,
    team,
    wireguard,
    xfrm,
)
from ckpt.kernel.apply_links import LinkMaker
from ckpt.kernel.apply_routes import RouteMaker
from ckpt.kernel.apply_target import Target, naming
from ckpt.kernel.netlink import Netlink
from ckpt.plan import steps


def apply(netns: int, wanted: Sequence[steps.Step], undo: ExitStack) -> None:
    """Carry out ``wanted`` in ``netns``; what they make outside is undone by ``undo``.

    Raises NetworkError that names the object.
    """
    with Netlink(netns=netns) as inside, Netlink() as outside:
        _Applier(Target(netns=netns, inside=inside, outside=outside, undo=undo)).run(wanted)


def apply_group(spaces: Mapping[str, int], wanted: Sequence[tuple[str, steps.Step]], undo: ExitStack) -> None:
    """Carry out each of ``wanted`` in the namespace of ``spaces`` that it names; see ``apply``."""
    with ExitStack() as sockets:
        outside = sockets.enter_context(Netlink())
        appliers: dict[str, _Applier] = {}
        for key, netns in spaces.items():
            inside = sockets.enter_context(Netlink(netns=netns))
            target = Target(netns=netns, inside=inside, outside=outside, undo=undo, spaces=spaces)
            appliers[key] = _Applier(target)
        for key, run in itertools.groupby(wanted, key=lambda step: step[0]):
            appliers[key].run([step for _, step in run])


class _Applier:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._links = LinkMaker(target)
        self._routes = RouteMaker(target)

    def run(self, wanted: Sequence[steps.Step]) -> None:
        self._target.learn()
        for step in wanted:
            if not isinstance(step, steps.MakeLink):
                self._links.make_waiting()
            if not isinstance(step, steps.BringUp):
                self._links.raise_links()
            if not isinstance(step, steps.SetRoutes):
                self._routes.await_addresses()
            match step:
                case steps.WriteSysctls():
                    sysctl.write(self._target.netns, step.values)
                case steps.Rename():
                    self._links.rename(step)
                case steps.MakeLink():
                    self._links.make_link(step)
                case steps.PlaceCounterpart():
                    self._links.place_counterpart(step.link)
                case steps.Enslave():
                    self._links.enslave(step)
                case steps.AdjustLinks():
                    self._links.adjust_links(step)
                case steps.BringUp():
                    self._links.bring_up(step)
                case steps.TakeDown():
                    self._links.take_down(step.link)
                case steps.ChooseActive():
                    self._links.choose_active(step.link)
                case steps.SetAddresses():
                    self._routes.set_addresses(step)
                case steps.SetTraffic():
                    self._set_traffic(step)
                case steps.SetBridging():
                    self._set_bridging(step)
                case steps.JoinMulticast():
                    self._join_multicast(step)
                case steps.SetNexthops():
                    self._routes.set_nexthops(step)
                case steps.SetLabelRoutes():
                    self._routes.set_label_routes(step)
                case steps.SetRoutes():
                    self._routes.set_routes(step)
                case steps.SetRules():
                    self._routes.set_rules(step)
                case steps.SetNeighbours():
                    self._routes.set_neighbours(step)
                case steps.LoadNftables():
                    nft.load(self._target.netns, step.tables)
                case steps.LoadFiltering():
                    filtering.load_filtering(self._target.netns, step.filtering)
                case steps.CreateConntrack():
                    conntrack.create_entries(self._target.netns, step.entries)
                    expectations.create_expectations(self._target.netns, step.expectations)
                case steps.SetTeamModes():
                    team.set_modes(self._target.netns, step.teams, self._target.indices)
                case steps.SetTeams():
                    team.set_options(self._target.netns, step.teams, self._target.indices)
                case steps.SetWireguard():
                    wireguard.apply(self._target.netns, step.devices, self._target.indices)
                case steps.OpenFou():
                    fou.open_ports(self._target.netns, step.ports, self._target.indices)
                case steps.AddIsatapRouters():
                    isatap.add_routers(self._target.netns, step.routers)
                case steps.SetIpsec():
                    xfrm.apply_ipsec(self._target.netns, step.ipsec, self._target.indices)
                case steps.SettleSysctls():
                    self._settle_sysctls(step)
                case steps.SetTokens():
                    self._set_tokens(step)
        self._links.make_waiting()
        self._links.raise_links()
        self._routes.await_addresses()

    def _set_traffic(self, step: steps.SetTraffic) -> None:
        for subject, request in rtnl_tc.making(step.traffic, self._target.indices):
            with naming("tc-refused", subject):
                request(self._target.inside)
        now = rtnl_tc.TrafficReader(self._target.inside, self._target.names(), []).read()
        if lines := rtnl_tc.differing(step.traffic, now):
            raise NetworkError(
                "the kernel did not take traffic control as given", code="tc-differs", details="; ".join(lines)
            )

    def _set_bridging(self, step: steps.SetBridging) -> None:
        for subject, request in rtnl_bridge.making(
            self._target.inside, step.bridging, self._target.indices, only=step.only
        ):
            with naming("bridge-refused", subject, "set"):
                request()

    def _join_multicast(self, step: steps.JoinMulticast) -> None:
        for group in step.groups:
            with naming("multicast-refused", f"group {group.mac} of {group.ifname}", "join"):
                link_multicast.join(self._target.netns, group)

    def _set_tokens(self, step: steps.SetTokens) -> None:
        for ifname, token in step.tokens.items():
            with naming("link-refused", f"token of {ifname}", "set"):
                rtnl_link_changes.set_token(self._target.inside, self._target.indices[ifname], token)

    def _settle_sysctls(self, step: steps.SettleSysctls) -> None:
        now = sysctl.read(self._target.netns, made=self._links.made)
        changed = sysctl.unsettled(step.sysctls, now, step.mtus)
        # stable_secret has no value to be read until it is set.
        changed |= {key: value for key, value in step.sysctls.items() if now.get(key) is None and _has_no_template(key)}
        modes = _take_modes(changed, self._target.indices)
        sysctl.write(self._target.netns, changed)
        for ifname, mode in modes.items():
            with naming("link-refused", f"link {ifname}", "set up"):
                rtnl_link_changes.set_addr_gen_mode(self._target.inside, self._target.indices[ifname], mode)


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
