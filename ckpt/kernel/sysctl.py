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
from collections.abc import Iterable, Mapping

from ckpt.errors import NetworkError
from ckpt.kernel import devconf
from ckpt.kernel.netns import create, entered

_ROOT = "/proc/sys"
_DEVICE_TREES = ("net/ipv4/conf", "net/ipv6/conf", "net/ipv4/neigh", "net/ipv6/neigh", "net/mpls/conf")
_TEMPLATES = ("all", "default")

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


def read_all(netns: int) -> dict[str, str]:
    """Every sysctl that can be read and written in ``netns``."""
    walk = _Walk(devconf.read_marks(netns))
    with entered(netns):
        walk.enter("net")
    return walk.values


class _Walk:
    """One walk through a namespace's files. A thousand links have a hundred thousand, so few of them are opened.

    What is remembered: which names of a per-device tree are read and written, and the text that was read for a name
    with a certain number behind it (`devconf`).
    """

    def __init__(self, marks: Mapping[tuple[str, str], devconf.Marks]) -> None:
        self.values: dict[str, str] = {}
        self._marks = marks
        self._kept: dict[tuple[str, str], bool] = {}
        self._texts: dict[tuple[str, str, int], str | None] = {}

    def enter(self, directory: str) -> None:
        """Take the values of all keys below ``directory``."""
        with os.scandir(f"{_ROOT}/{directory}") as found:
            entries = sorted(found, key=lambda entry: entry.name)
        tree, _, device = directory.rpartition("/")
        if tree in _DEVICE_TREES and device not in _TEMPLATES:
            self._take_device(tree, device, entries)
            return
        for entry in entries:
            key = f"{directory}/{entry.name}"
            if entry.is_dir():
                self.enter(key)
            elif _is_kept(entry, key) and (value := _read(key)) is not None:
                self.values[key] = value

    def _take_device(self, tree: str, device: str, entries: Iterable[os.DirEntry[str]]) -> None:
        marks = self._marks.get((tree, device), {})
        for entry in entries:
            name = entry.name
            key = f"{tree}/{device}/{name}"
            kept = self._kept.get((tree, name))
            if kept is None:
                kept = self._kept[tree, name] = _is_kept(entry, key)
            if not kept:
                continue
            mark = marks.get(name)
            if mark is None:
                value = _read(key)
            elif (tree, name, mark) in self._texts:
                value = self._texts[tree, name, mark]
            else:
                value = self._texts[tree, name, mark] = _read(key)
            if value is not None:
                self.values[key] = value


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


def read_changed(netns: int, mtus: Mapping[str, int]) -> dict[str, str]:
    """What of ``netns`` differs from an untouched namespace, as ``Network.sysctls`` describes it."""
    untouched, values = _untouched(), read_all(netns)
    return {key: value for key, value in values.items() if _kept(key, value, values, untouched, mtus)}


@functools.cache
def _untouched() -> Mapping[str, str]:
    """The sysctls of a namespace that nobody has touched; read once, since a group may be frozen meanwhile."""
    pristine = create()
    try:
        return read_all(pristine)
    finally:
        os.close(pristine)


def _kept(
    key: str, value: str, values: Mapping[str, str], untouched: Mapping[str, str], mtus: Mapping[str, int]
) -> bool:
    parts = device_of(key)
    if parts is None:
        return key in _INHERITED or untouched.get(key) != value
    tree, device, name = parts
    if device in _TEMPLATES:
        return True
    if name == "mtu":
        return value != str(mtus.get(device, value))
    # Outside the first namespace the neighbour tables show no template; an untouched lo has its values.
    template = values.get(f"{tree}/default/{name}", untouched.get(f"{tree}/lo/{name}"))
    return value != template


def expected(wanted: Mapping[str, str], now: Mapping[str, str], mtus: Mapping[str, int]) -> dict[str, str]:
    """What every key that ``now`` has should be for a namespace recorded as ``wanted``; unrecorded ones stay."""
    result: dict[str, str] = {}
    for key in now:
        parts = device_of(key)
        if key in wanted:
            result[key] = wanted[key]
        elif parts is not None and parts[1] not in _TEMPLATES:
            tree, device, name = parts
            template = wanted.get(f"{tree}/default/{name}")
            if name == "mtu":
                result[key] = str(mtus.get(device, now[key]))
            elif template is not None:
                result[key] = template
    return result


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
