"""What ethtool changes of a link: offload features, numbers of queues in use, and coalescing.

A feature says nothing by itself: what is on by default depends on the kind of link and on the kernel. So a link is held
against an untouched one of its kind, made for that once in a namespace that is thrown away, and only what differs is
read; of a kind that cannot be made so, everything that can be changed. Making it so sets what differs from what is
there, so reading too much does no harm.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from ckpt.errors import NetworkError
from ckpt.kernel import netlink, netns, rtnl_kinds, rtnl_link_changes, rtnl_links, tun
from ckpt.kernel.genetlink import GenericNetlink
from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, nested, number, pairs, parse, string, u32
from ckpt.model.network import Link
from ckpt.model.plenty import replacing

_STRSET_GET, _FEATURES_GET, _FEATURES_SET = 1, 11, 12
_CHANNELS_GET, _CHANNELS_SET, _COALESCE_GET, _COALESCE_SET = 17, 18, 19, 20
_SS_FEATURES = 4
_COMPACT = 1

_DEVICE, _DEVICE_INDEX, _DEVICE_FLAGS = 1, 1, 3
_HW, _WANTED = 2, 3
_BITS, _BITSET_VALUE, _BIT, _BIT_NAME, _BIT_VALUE = 3, 4, 1, 2, 3
_MOST_CHANNELS = {"rx": 2, "tx": 3, "combined": 5}
_CHANNELS = {"rx": 6, "tx": 7, "combined": 9}
_OF_CHANNELS = (*_MOST_CHANNELS.values(), *_CHANNELS.values())
_COALESCE = {"rx_usecs": 2, "rx_frames": 3, "tx_usecs": 6, "tx_frames": 7}

Features = Mapping[str, bool]


class Channels(NamedTuple):
    """The queues of a link: how many of each sort are in use, and how many there are to receive."""

    used: Mapping[str, int]
    receiving: int


_NONE = Channels({}, 0)


class Ethtool:
    """One connection to ethtool's netlink family in ``netns``."""

    def __init__(self, space: int) -> None:
        # A kernel may be without it, and then nothing can have been changed by it.
        self._connection = GenericNetlink("ethtool", space)

    def __enter__(self) -> Ethtool:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def features(self) -> dict[int, dict[str, bool]]:
        """By the index of a link, the features that can be changed and whether they are wanted."""
        names = self._names()
        found = {}
        alike: dict[tuple[bytes, bytes], dict[str, bool]] = {}  # of a thousand links most are
        for index, attributes in self._dump(_FEATURES_GET):
            both = attributes[_HW], attributes[_WANTED]
            if both not in alike:
                changeable, wanted = map(_bits, both)
                alike[both] = {names[one]: one in wanted for one in sorted(changeable) if one in names}
            found[index] = alike[both]
        return found

    def channels(self) -> dict[int, Channels]:
        """By the index of a link, the numbers of queues in use, of those that have more than one; and how many."""
        found = {}
        alike: dict[tuple[bytes, ...], Channels] = {}
        for index, attributes in self._dump(_CHANNELS_GET):
            values = tuple(attributes.get(one, b"") for one in _OF_CHANNELS)
            if values not in alike:
                counts = dict(zip(_OF_CHANNELS, map(number, values), strict=True))
                used = {name: counts[one] for name, one in _CHANNELS.items() if counts[_MOST_CHANNELS[name]] > 1}
                alike[values] = Channels(used, counts[_MOST_CHANNELS["rx"]])
            found[index] = alike[values]
        return found

    def coalescing(self) -> dict[int, dict[str, int]]:
        """By the index of a link, what is waited for before an interrupt, where that is not nothing."""
        found = {}
        for index, attributes in self._dump(_COALESCE_GET):
            values = {name: number(attributes.get(one, b"")) for name, one in _COALESCE.items()}
            found[index] = {name: value for name, value in values.items() if value}
        return found

    def make_so(self, commands: Sequence[tuple[int, bytes]]) -> list[KernelRefusal | None]:
        """Carry out what the functions below describe; what the kernel says to each."""
        return self._connection.requests(commands)

    def _dump(self, command: int) -> list[tuple[int, Attributes]]:
        if not self._connection:
            return []
        device = nested(_DEVICE, attribute(_DEVICE_FLAGS, u32(_COMPACT)))
        try:
            found = self._connection.dump(command, device)
        except KernelRefusal as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return []
            raise
        return [(number(parse(one[_DEVICE])[_DEVICE_INDEX]), one) for one in found]

    def _names(self) -> dict[int, str]:
        """The kernel's features by their bits."""
        if not self._connection:
            return {}
        sets = nested(2, nested(1, attribute(1, u32(_SS_FEATURES))))
        found: dict[int, str] = {}
        for answer in self._connection.request(_STRSET_GET, nested(_DEVICE) + sets):
            for _, one in pairs(answer.get(2, b"")):
                for _, listed in pairs(parse(one).get(3, b"")):
                    entry = parse(listed)
                    found[number(entry[1])] = netlink.text(entry[2])
        return found


def _bits(bitset: bytes) -> set[int]:
    value = number(parse(bitset).get(_BITSET_VALUE, b""))
    return {bit for bit in range(value.bit_length()) if value >> bit & 1}


def with_settings(space: int, links: Iterable[Link]) -> tuple[Link, ...]:
    """``links`` of ``space`` with what ethtool has changed of them."""
    with Ethtool(space) as connection:
        features, channels, coalescing = connection.features(), connection.channels(), connection.coalescing()
    found = []
    changed: dict[tuple[int, int], Features] = {}
    for link in links:
        usual, now = _untouched(link.kind, link.options.get("type", "1")), features.get(link.ifindex, _NOTHING)
        if (alike := (id(usual), id(now))) not in changed:
            changed[alike] = {name: value for name, value in now.items() if usual.get(name) != value}
        used, receiving = channels.get(link.ifindex, _NONE)
        # A kernel without receive steering (CONFIG_RPS) tells of these queues only here.
        queues = link.rx_queues or receiving
        waiting = coalescing.get(link.ifindex, {})
        if changed[alike] or used or waiting or queues != link.rx_queues:
            link = replacing(Link)(link, features=changed[alike], channels=used, rx_queues=queues, coalescing=waiting)
        found.append(link)
    return tuple(found)


_NOTHING: dict[str, bool] = {}
_LOWER = "lower"


@functools.cache
def _untouched(kind: str, tun_type: str) -> Features:
    """The features of a new link of ``kind``; none when it cannot be made here."""
    space = netns.create()
    try:
        with Netlink(netns=space) as connection:
            wanted = Link(ifname="untouched", kind=kind, options=rtnl_kinds.LEAST.get(kind, {}))
            if kind == "loopback":
                wanted = replace(wanted, ifname="lo")
            elif kind == "tun":
                tun.make(space, replace(wanted, options={"type": tun_type}))
            else:
                rtnl_link_changes.make(connection, Link(ifname=_LOWER, kind="veth"))
                lower = rtnl_links.read_one(connection, ifname=_LOWER)
                stands = kind not in ("veth", "bridge", "dummy", "ifb")
                rtnl_link_changes.make(connection, wanted, lower=lower.index if stands and lower else 0)
            made = rtnl_links.read_one(connection, ifname=wanted.ifname)
        with Ethtool(space) as features:
            return features.features().get(made.index, {}) if made else {}
    except (OSError, KeyError):
        return {}
    finally:
        os.close(space)


_ONE_OF_EACH = {"rx": 1, "tx": 1}


def sparing(link: Link) -> Link:
    """``link`` without the numbers of its queues, where a veth has just these by itself, and one of each in use.

    When they are asked for, all of them are in use, and whenever one is taken out of use the kernel waits until nobody
    can be at it any more (netif_set_real_num_tx_queues): with a thousand links, as long as all the rest takes.
    """
    if link.kind != "veth" or dict(link.channels) != _ONE_OF_EACH:
        return link
    return (
        replacing(Link)(link, tx_queues=0, rx_queues=0) if (link.tx_queues, link.rx_queues) == _usual_queues() else link
    )


@functools.cache
def _usual_queues() -> tuple[int, int]:
    """How many a veth gets to send and to receive, when it is not said; 0 where it does not use one of each."""
    space = netns.create()
    try:
        with Netlink(netns=space) as connection, Ethtool(space) as settings:
            rtnl_link_changes.make(connection, Link(ifname="untouched", kind="veth"))
            made = rtnl_links.read_one(connection, ifname="untouched")
            channels = settings.channels().get(made.index, _NONE) if made else _NONE
        if made is None or channels.used != _ONE_OF_EACH:
            return 0, 0
        return made.tx_queues, made.rx_queues or channels.receiving
    finally:
        os.close(space)


def adjust(space: int, links: Iterable[Link], indices: Mapping[str, int]) -> None:
    """Make the ``links`` of ``space`` as recorded. Raises NetworkError that names the link."""
    asked = [link for link in links if link.features or link.channels or link.coalescing]
    if not asked:
        return
    with Ethtool(space) as connection:
        features = connection.features() if any(link.features for link in asked) else {}
        channels = connection.channels() if any(link.channels for link in asked) else {}
        coalescing = connection.coalescing() if any(link.coalescing for link in asked) else {}
        commands: list[tuple[str, tuple[int, bytes]]] = []
        for link in asked:
            index = indices[link.ifname]
            if wanted := _differing(link.features, features.get(index, {})):
                commands.append((link.ifname, _setting_features(index, wanted)))
            if counts := _differing(link.channels, channels.get(index, _NONE).used):
                commands.append((link.ifname, _setting(_CHANNELS_SET, _CHANNELS, index, counts)))
            if values := _differing(link.coalescing, coalescing.get(index, {})):
                commands.append((link.ifname, _setting(_COALESCE_SET, _COALESCE, index, values)))
        said = connection.make_so([command for _, command in commands])
    for (ifname, _), refusal in zip(commands, said, strict=True):
        if refusal is not None:
            details = f"ethtool: {refusal.strerror}"
            raise NetworkError(f"cannot set up the link {ifname}", code="link-refused", details=details) from refusal


def _setting_features(index: int, features: Mapping[str, bool]) -> tuple[int, bytes]:
    bits = (
        nested(_BIT, attribute(_BIT_NAME, string(name)), attribute(_BIT_VALUE, b"") if value else b"")
        for name, value in features.items()
    )
    return _FEATURES_SET, _device(index) + nested(_WANTED, nested(_BITS, *bits))


def _setting(command: int, names: Mapping[str, int], index: int, values: Mapping[str, int]) -> tuple[int, bytes]:
    return command, _device(index) + b"".join(attribute(names[name], u32(value)) for name, value in values.items())


def _device(index: int) -> bytes:
    return nested(_DEVICE, attribute(_DEVICE_INDEX, u32(index)))


_Value = TypeVar("_Value", bool, int)


def _differing(wanted: Mapping[str, _Value], now: Mapping[str, _Value]) -> dict[str, _Value]:
    """What is not so now. What the kernel does not have is off, or nothing, as it may be."""
    return {name: value for name, value in wanted.items() if now.get(name, type(value)()) != value}
