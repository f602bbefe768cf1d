"""Carry out the steps of a plan that are about links: make them, join and adjust them, bring them up.

A link is made in the namespace where what it stands on is, and moved. When all are made, they are read again, and what
the kernel did not take is an error. The outside end of a pair is undone by the caller's stack.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt.errors import NetworkError
from ckpt.kernel import ethtool, rtnl_addresses, rtnl_bond, rtnl_link_changes, rtnl_links, rtnl_taken, tun
from ckpt.kernel.apply_target import Target, naming
from ckpt.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, KernelRefusal, Message, Netlink
from ckpt.kernel.netns import open_own
from ckpt.kernel.rtnl_links import LinkReader
from ckpt.model.network import PAIRED, Address, Counterpart, Link, Place
from ckpt.plan import steps

_CARRIERS = 1.5


class LinkMaker:
    """Makes the links of one namespace."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.made: set[str] = set()
        self._waiting: list[tuple[str, Link, Link | None]] = []
        self._rising: list[steps.BringUp] = []

    def rename(self, step: steps.Rename) -> None:
        """Give a link another name."""
        with naming("link-refused", f"link {step.was} {step.ifname}", "call"):
            rtnl_link_changes.rename(self._target.inside, self._target.indices[step.was], step.ifname)
        self._target.indices[step.ifname] = self._target.indices.pop(step.was)

    def make_link(self, step: steps.MakeLink) -> None:
        """Make a link, and its peer: with all those whose turn comes next, by ``make_waiting``, where it can be."""
        link, peer = ethtool.sparing(step.link), step.peer and ethtool.sparing(step.peer)
        other = link.counterpart
        outside = f" with {other.ifname} outside" if other and other.place is Place.CALLER and other.ifname else ""
        subject = f"link {link.ifname} of kind {link.kind}{outside}"
        both = (link, peer) if peer else (link,)
        inside = link.kind != "tun" and not step.from_outside and (other is None or other.place is Place.INSIDE)
        if inside:
            self._waiting.append((subject, link, peer))
        if not inside or not all(one.ifindex for one in both):
            self.make_waiting()
        if not inside:
            with naming("link-refused", subject):
                self._make_alone(step, link, other, peer)
        for one in both:
            # An index that is asked for is had, or the link is refused.
            made = None if one.ifindex else rtnl_links.read_one(self._target.inside, ifname=one.ifname)
            self._target.indices[one.ifname] = made.index if made else one.ifindex
            self.made.add(one.ifname)

    def _making(self, link: Link, peer: Link | None) -> Message:
        """What makes a link all of which is in the namespace."""
        if peer is not None:
            return rtnl_link_changes.making_pair(link, peer, self._target.netns)
        other = link.counterpart
        lower = self._target.indices.get(other.ifname, other.ifindex) if other else 0
        return rtnl_link_changes.making(link, lower=lower)

    def make_waiting(self) -> None:
        """Make those whose turn it is, in their order; the first that is refused is said."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        said = self._target.inside.requests(self._making(link, peer) for _, link, peer in waiting)
        for (subject, _, _), refusal in zip(waiting, said, strict=True):
            if refusal is not None:
                with naming("link-refused", subject):
                    raise refusal

    def _make_alone(self, step: steps.MakeLink, link: Link, other: Counterpart | None, peer: Link | None) -> None:
        if link.kind == "tun":
            tun.make(self._target.netns, link)
        elif step.from_outside or other is None:
            self._make_on(self._target.outside, link, 0)
        elif other.place is Place.ELSEWHERE:
            self._make_across(link, other, peer)
        else:
            self._make_to_caller(link, other)

    def _make_to_caller(self, link: Link, other: Counterpart) -> None:
        """Make a link whose counterpart is in the caller's namespace; asked for from inside, see ``_make_across``."""
        own = open_own()
        try:
            if link.kind in PAIRED:
                # The host chooses the index of its own end, but for a netkit that is made from there: without an index
                # of that end it disregards ours (netkit_new_link, drivers/net/netkit.c).
                chosen = max(rtnl_links.read_raw(self._target.outside)) + 1 if rtnl_link_changes.is_second(link) else 0
                rtnl_link_changes.make_pair(self._target.inside, link, replace(other, ifindex=chosen), own)
            else:
                self._make_on(
                    self._target.outside, link, self._outside_index(other.ifname, f"{link.ifname} stands on it")
                )
        finally:
            os.close(own)

    def _make_on(self, there: Netlink, link: Link, lower: int) -> None:
        """Make a link on ``lower`` (or 0), which lies in the namespace of ``there``, and move it inside.

        A link that stands on another is made where that one is, whatever is asked for, and its index must be free there
        as well; only a move gives it the one it shall have (IFLA_NEW_IFINDEX, Linux 5.13, eeb85a14ee34).
        """
        passing = f"ckpt{secrets.token_hex(4)}"
        rtnl_link_changes.make(there, replace(link, ifname=passing, ifindex=0), lower=lower)
        made = rtnl_links.read_one(there, ifname=passing)
        if made is None:
            raise NetworkError(f"the link {link.ifname} was taken away while it was made", code="link-missing")
        try:
            rtnl_link_changes.move(there, made.index, self._target.netns, ifname=link.ifname, new_ifindex=link.ifindex)
        except KernelRefusal:
            rtnl_link_changes.delete(there, made.index)
            raise

    def _make_across(self, link: Link, other: Counterpart, peer: Link | None) -> None:
        """Make a link whose counterpart is in another namespace of the group.

        Asked for from inside: older kernels look for a link of its name and index where the request comes from.
        """
        there = self._target.spaces[other.netns]
        if link.kind in PAIRED and peer is not None:
            rtnl_link_changes.make_pair(self._target.inside, link, peer, there)
            return
        with Netlink(netns=there) as connection:
            lower = rtnl_links.read_one(connection, ifname=other.ifname) if other.ifname else None
            if lower is None and other.ifname:
                raise NetworkError(f"there is no link {other.ifname} in the other namespace", code="link-missing")
            self._make_on(connection, link, lower.index if lower else other.ifindex)

    def _outside_index(self, ifname: str, why: str) -> int:
        found = rtnl_links.read_one(self._target.outside, ifname=ifname)
        if found is not None:
            return found.index
        raise NetworkError(
            f"there is no link {ifname} here",
            code="link-missing",
            details=why,
            hint="make it, or name another that takes its place",
        )

    def place_counterpart(self, link: Link) -> None:
        """Have the outside end of a pair stand as the record of it says."""
        other = link.counterpart
        if other is None:
            return
        here = rtnl_links.read_one(self._target.inside, ifindex=self._target.indices[link.ifname])
        outside = rtnl_links.read_one(self._target.outside, ifindex=here.link) if here else None
        if outside is None:
            raise NetworkError(f"the outside end of {link.ifname} has gone", code="link-missing")
        index = outside.index
        self._target.undo.callback(_delete_outside, index, outside.ifname)
        with naming("link-refused", f"outside end of {link.ifname}, {other.ifname},", "set up"):
            if other.master:
                master = self._outside_index(other.master, f"{other.ifname} is a port of it")
                rtnl_link_changes.enslave(self._target.outside, index, master)
            for address in other.addresses:
                if address.scope != "link":
                    body = rtnl_addresses.encode_address(address, {address.ifname: index})
                    self._target.outside.request(rtnl_addresses.RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_REPLACE)
            if other.up:
                rtnl_link_changes.set_up(self._target.outside, index)

    def adjust_links(self, step: steps.AdjustLinks) -> None:
        """Have links keep what is recorded, and see whether they do."""
        now, sent = self._links(), self._target.inside.sent
        for link in step.links:
            with naming("link-refused", f"link {link.ifname}", "set up"):
                master = now.get(link.master)
                rtnl_link_changes.change(
                    self._target.inside, now[link.ifname], link, master_kind=master.kind if master else ""
                )
        ethtool.adjust(self._target.netns, step.links, self._target.indices)
        if step.joined:
            self._compare_links(step.links, now if self._target.inside.sent == sent else self._links())

    def _compare_links(self, links: Sequence[Link], now: Mapping[str, Link]) -> None:
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
        found = LinkReader(self._target.learn(), caller={}, caller_nsid=-1).links()
        return {link.ifname: link for link in found}

    def bring_up(self, step: steps.BringUp) -> None:
        """Bring a link up, with all those whose turn comes next: by ``raise_links``."""
        self._rising.append(step)

    def raise_links(self) -> None:
        """Bring up those whose turn it is, in their order; what is refused is asked for again by itself."""
        if not self._rising:
            return
        rising, self._rising = self._rising, []
        messages = [rtnl_link_changes.up_message(self._target.indices[step.link.ifname]) for step in rising]
        for step, refusal in zip(rising, self._target.inside.requests(messages), strict=True):
            if refusal is not None:
                self._bring_up(step)

    def _bring_up(self, step: steps.BringUp) -> None:
        with naming("link-refused", f"link {step.link.ifname}", "bring up"):
            try:
                rtnl_link_changes.set_up(self._target.inside, self._target.indices[step.link.ifname])
            except KernelRefusal as error:
                if error.errno != errno.EADDRNOTAVAIL or step.source is None:
                    raise
                with self._lent(step.source):
                    rtnl_link_changes.set_up(self._target.inside, self._target.indices[step.link.ifname])

    @contextlib.contextmanager
    def _lent(self, address: Address) -> Iterator[None]:
        """For the time of the block, ``address``; links come up before they get their own."""
        body = rtnl_addresses.encode_address(address, self._target.indices)
        self._target.inside.request(rtnl_addresses.RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_EXCL)
        try:
            yield
        finally:
            self._target.inside.request(rtnl_addresses.RTM_DELADDR, body)

    def enslave(self, step: steps.Enslave) -> None:
        """Make a link a port of its master."""
        with naming("link-master", f"link {step.ifname} a port of {step.master}"):
            self._join(step)

    def _join(self, step: steps.Enslave) -> None:
        for ifname in step.below:
            rtnl_link_changes.set_up(self._target.inside, self._target.indices[ifname])
        if step.below:
            # A VLAN comes up with the link below it, and no bond takes a link that is up.
            rtnl_link_changes.set_down(self._target.inside, self._target.indices[step.ifname])
        master = self._target.indices[step.master]
        rtnl_link_changes.enslave(self._target.inside, self._target.indices[step.ifname], master)

    def take_down(self, link: Link) -> None:
        """Take a link down."""
        with naming("link-refused", f"link {link.ifname}", "take down"):
            rtnl_link_changes.set_down(self._target.inside, self._target.indices[link.ifname])

    def choose_active(self, link: Link) -> None:
        """Have the bond use the port that it used; when that gets no carrier in time, it goes on with its own choice.

        It takes notice of carriers at intervals, and a port without one it refuses, not without saying so in the log.
        """
        index, port = self._target.indices[link.ifname], int(link.options[rtnl_bond.ACTIVE])
        deadline = time.monotonic() + _CARRIERS
        while time.monotonic() < deadline:
            found = rtnl_links.read_one(self._target.inside, ifindex=port)
            if found is not None and rtnl_bond.is_usable(found.port_data):
                with contextlib.suppress(KernelRefusal):
                    rtnl_link_changes.set_options(self._target.inside, index, link, (rtnl_bond.ACTIVE,))
                    return
            time.sleep(0.01)


def _delete_outside(index: int, ifname: str) -> None:
    """Undo: the end of the pair that is in the caller's namespace goes, unless the pair has gone already."""
    with Netlink() as outside:
        raw = rtnl_links.read_one(outside, ifindex=index)
        if raw is not None and raw.ifname == ifname and raw.kind in PAIRED:
            with contextlib.suppress(KernelRefusal):
                rtnl_link_changes.delete(outside, index)
