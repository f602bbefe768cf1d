"""The sysctls of a network namespace: read, and made equal to a record.

/proc/sys/net shows each reader its own namespace. What is writable there in a namespace other than the first belongs
to that namespace alone: the kernel takes the write bit from every table that is shared (31c4d2f160eb "net: Ensure net
namespace isolation of sysctls", Linux 5.13), so the mode is the proof and nothing else is ever written. Three groups
are told apart: a device's own (``net/ipv6/conf/eth0/…``), the templates (``…/all/…``, ``…/default/…``) from which new
devices copy theirs, and the rest.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Container, Mapping

from ckpt.errors import NetworkError
from ckpt.kernel import devconf
from ckpt.kernel.netns import create, entered
from ckpt.records import dataclass

_ROOT = "/proc/sys"
_DEVICE_TREES = ("net/ipv4/conf", "net/ipv6/conf", "net/ipv4/neigh", "net/ipv6/neigh", "net/mpls/conf")
_TEMPLATES = ("all", "default")
_NO_MARKS: devconf.Marks = {}

_LONGEST = 1 << 16

# Actions that look like values.
_ACTIONS = frozenset({"net/ipv4/route/flush", "net/ipv6/route/flush"})

# A new namespace has these of the first one (tcp_sk_init), so that an untouched one differs from host to host.
_INHERITED = frozenset({"net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "net/ipv4/tcp_congestion_control"})


def device_of(key: str) -> tuple[str, str, str] | None:
    """The tree, the device (or template) and the name that make up a per-device key; None for other keys."""
    parts = key.split("/")
    if len(parts) == 5 and "/".join(parts[:3]) in _DEVICE_TREES:
        return "/".join(parts[:3]), parts[3], parts[4]
    return None


def is_template(key: str) -> bool:
    """Whether the key is one of ``all`` or ``default``."""
    parts = device_of(key)
    return parts is not None and parts[1] in _TEMPLATES


@dataclass(frozen=True, slots=True)
class Sysctls:
    """What a namespace's files say. ``devices`` is by tree and link; links that are alike share one mapping."""

    plain: dict[str, str]
    devices: dict[tuple[str, str], dict[str, str]]

    def get(self, key: str) -> str | None:
        """The value of ``key``; None where it has none."""
        parts = device_of(key)
        if parts is None or parts[1] in _TEMPLATES:
            return self.plain.get(key)
        tree, device, name = parts
        return self.devices.get((tree, device), {}).get(name)


def read(netns: int, *, made: Container[str] = ()) -> Sysctls:
    """Every sysctl that can be read and written in ``netns``.

    Of the links ``made``, what netlink does not show is left out: they have it of their template, or it was written.
    """
    walk = _Walk(devconf.read_marks(netns), made)
    with entered(netns):
        walk.enter("net")
        walk.enter_devices()
    return walk.found


def read_all(netns: int) -> dict[str, str]:
    """The same as one mapping of all keys."""
    found = read(netns)
    of_devices = (
        (f"{tree}/{device}/{name}", value)
        for (tree, device), values in found.devices.items()
        for name, value in values.items()
    )
    return found.plain | dict(of_devices)


class _Walk:
    """One walk through a namespace's files. A thousand links have a hundred thousand, so few of them are opened.

    All links have the same files in a tree; what is in them is told apart by the numbers behind them (`devconf`), and
    read once for each number. Only what has no number is read for every link. Which links there are in a tree is known
    from there, too: to be listed in a directory, the kernel makes an inode of each.
    """

    def __init__(self, marks: Mapping[tuple[str, str], devconf.Marks], made: Container[str] = ()) -> None:
        self.found = Sysctls({}, {})
        self._marks = marks
        self._made = made
        self._names: dict[str, tuple[str, ...]] = {}
        self._unmarked: dict[tuple[str, int], tuple[str, ...]] = {}
        self._texts: dict[tuple[str, str, int], str | None] = {}
        self._alike: dict[object, dict[str, str]] = {}

    def enter(self, directory: str) -> None:
        """Take the values of all keys below ``directory``."""
        if directory in devconf.TREES:
            for template in _TEMPLATES:
                # Outside the first namespace the neighbour tables have none.
                if os.path.isdir(f"{_ROOT}/{directory}/{template}"):
                    self.enter(f"{directory}/{template}")
            return
        with os.scandir(f"{_ROOT}/{directory}") as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            key = f"{directory}/{entry.name}"
            if directory in _DEVICE_TREES and entry.name not in _TEMPLATES:
                self.found.devices[directory, entry.name] = self._of_device(directory, entry.name, _NO_MARKS)
            elif entry.is_dir():
                self.enter(key)
            elif _is_kept(entry, key) and (value := _read(key)) is not None:
                self.found.plain[key] = value

    def enter_devices(self) -> None:
        """Take the values of all links of which netlink shows numbers."""
        for (tree, device), marks in self._marks.items():
            if device not in _TEMPLATES:  # the kernel keeps no files for a link of such a name
                self.found.devices[tree, device] = self._of_device(tree, device, marks)

    def _of_device(self, tree: str, device: str, marks: devconf.Marks) -> dict[str, str]:
        if tree not in self._names:
            with os.scandir(f"{_ROOT}/{tree}/{device}") as found:
                self._names[tree] = tuple(sorted(one.name for one in found if _is_kept(one, "")))
        if (tree, id(marks)) not in self._unmarked:
            self._unmarked[tree, id(marks)] = tuple(name for name in self._names[tree] if name not in marks)
        unmarked = () if device in self._made else self._unmarked[tree, id(marks)]
        own = {name: _read(f"{tree}/{device}/{name}") for name in unmarked}
        alike = (tree, id(marks), *own.items())
        if alike not in self._alike:
            texts = own | {name: self._text(tree, device, name, mark) for name, mark in marks.items()}
            self._alike[alike] = {name: value for name in self._names[tree] if (value := texts.get(name)) is not None}
        return self._alike[alike]

    def _text(self, tree: str, device: str, name: str, mark: int) -> str | None:
        key = (tree, name, mark)
        if key not in self._texts:
            self._texts[key] = _read(f"{tree}/{device}/{name}") if name in self._names[tree] else None
        return self._texts[key]


def _is_kept(entry: os.DirEntry[str], key: str) -> bool:
    return entry.stat().st_mode & 0o600 == 0o600 and key not in _ACTIONS


def _read(key: str) -> str | None:
    """The value; None for one that has none yet (an unset ``stable_secret`` gives EIO) or has just gone."""
    try:
        fd = os.open(f"{_ROOT}/{key}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _LONGEST).decode("ascii", "surrogateescape").rstrip("\n")
    except OSError:
        return None
    finally:
        os.close(fd)


def read_changed(netns: int, mtus: Mapping[str, int], *, untouched: bool = False) -> dict[str, str]:
    """What of ``netns`` differs from an ``untouched`` namespace, which it may be; as ``Network.sysctls`` has it."""
    found = read(netns)
    usual = found if untouched else _untouched()
    changed = {key: value for key, value in found.plain.items() if _is_changed(key, value, usual)}
    seen: dict[int, list[tuple[str, str]]] = {}
    for (tree, device), values in found.devices.items():
        if id(values) not in seen:
            # Outside the first namespace the neighbour tables show no template; an untouched lo has its values.
            template = usual.devices.get((tree, "lo"), {}) | _template(tree, found.plain)
            seen[id(values)] = [
                item for item in values.items() if item[0] != "mtu" and template.get(item[0]) != item[1]
            ]
        changed.update((f"{tree}/{device}/{name}", value) for name, value in seen[id(values)])
        # An ipvlan follows the link below it without telling IPv6, whose own is then larger than anybody can set it.
        if "mtu" in values and int(values["mtu"]) < mtus.get(device, 0):
            changed[f"{tree}/{device}/mtu"] = values["mtu"]
    return changed


@functools.cache
def _untouched() -> Sysctls:
    """The sysctls of a namespace that nobody has touched; read once, since a group may be frozen meanwhile."""
    pristine = create()
    try:
        return read(pristine)
    finally:
        os.close(pristine)


def _is_changed(key: str, value: str, untouched: Sysctls) -> bool:
    return is_template(key) or key in _INHERITED or untouched.plain.get(key) != value


def _template(tree: str, values: Mapping[str, str]) -> dict[str, str]:
    """What ``values`` say of ``default``, by name."""
    start = f"{tree}/default/"
    return {key[len(start) :]: value for key, value in values.items() if key.startswith(start)}


def unsettled(wanted: Mapping[str, str], now: Sysctls, mtus: Mapping[str, int]) -> dict[str, str]:
    """What is to be written so that a namespace is as recorded in ``wanted``; keys that are not there stay away.

    A link's that is not recorded is as its template; another one that is not recorded stays as it is.
    """
    changed = {key: value for key, value in wanted.items() if now.get(key) not in (None, value)}
    seen: dict[int, list[tuple[str, str]]] = {}
    for (tree, device), values in now.devices.items():
        if id(values) not in seen:
            template = _template(tree, wanted)
            seen[id(values)] = [
                (name, template[name])
                for name in values
                if name != "mtu" and template.get(name, values[name]) != values[name]
            ]
        own = [(f"{tree}/{device}/{name}", value) for name, value in seen[id(values)]]
        if "mtu" in values and (mtu := str(mtus.get(device, values["mtu"]))) != values["mtu"]:
            own.append((f"{tree}/{device}/mtu", mtu))
        changed.update((key, value) for key, value in own if key not in wanted)
    return changed


def order(key: str) -> tuple[int, str]:
    """A sort key: what resets or sets many others comes before those."""
    if key == "net/ipv4/ip_forward":
        return 0, key
    if key.endswith("/stable_secret"):
        return 4, key  # sets addr_gen_mode
    if key.endswith("/addr_gen_mode"):
        return 5, key
    parts = device_of(key)
    if parts is None:
        return 1, key
    return {"all": 2, "default": 3}.get(parts[1], 4), key


def write(netns: int, values: Mapping[str, str]) -> None:
    """Write ``values`` in their right order. Raises NetworkError that names the key."""
    with entered(netns):
        for key in sorted(values, key=order):
            try:
                fd = os.open(f"{_ROOT}/{key}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, values[key].encode("ascii", "surrogateescape") + b"\n")
                finally:
                    os.close(fd)
            except OSError as error:
                missing = error.errno == errno.ENOENT
                raise NetworkError(
                    f"cannot set the sysctl {key} to {values[key]!r}",
                    code="sysctl-missing" if missing else "sysctl-refused",
                    details=str(error.strerror),
                    hint="this kernel does not have it" if missing else None,
                ) from error
