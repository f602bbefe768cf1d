"""CRIU's own image files, read and changed through pycriu: the few things that CRIU would restore wrongly.

Each amendment is made on the unpacked files, before CRIU reads them; the image of ours stays as it was dumped. pycriu's
codec is loaded only when there is something to amend, because loading it takes longer than a small restore.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckpt.kernel.criu import Criu
from ckpt.kernel.netlink import ip_bytes, ip_text
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint, Socket
from ckpt.records import dataclass

FILES = "files.img"
"""Every open file of every process, one entry each (images/fdinfo.proto)."""


_TCP_CLOSE = 7
_WORDS = {2: 1, 10: 4}
"""The 32-bit words of an address, by its family."""


def amend(criu: Criu, path: Path, change: Callable[[dict[str, Any]], bool]) -> int:
    """Let ``change`` edit the entries of the CRIU image at ``path``; how many of them it said it has changed."""
    images = criu.pycriu("images")
    with warnings.catch_warnings():
        # pycriu asks protobuf for labels in a way that newer ones call deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        with path.open("rb") as source:
            content = images.load(source)
        changed = sum(change(entry) for entry in content["entries"])
        if changed:
            with path.open("r+b") as target:
                target.truncate()
                images.dump(content, target)
    return changed


def rearm_timer(entry: dict[str, Any]) -> bool:
    """Let a periodic timerfd that had expired unread tick on.

    The kernel shows no time to the next expiry for one (fs/timerfd.c: it is armed again by the read), CRIU writes that
    down, and to set a timer to zero is to stop it.
    """
    timer = entry.get("tfd")
    if timer is None or timer["vsec"] or timer["vnsec"] or not (timer["isec"] or timer["insec"]):
        return False
    timer["vnsec"] = 1
    return True


def accept_growth(entry: dict[str, Any]) -> bool:
    """Let a file that is open for appending be larger than it was.

    CRIU does so itself only for those that cannot be read as well (should_check_size, criu/files-reg.c).
    """
    file = entry.get("reg")
    if file is None or "size" not in file:
        return False
    flags = _flags(file["flags"])
    path = file["name"] if file["name"].startswith("/") else f"/{file['name']}"
    try:
        grown = os.stat(path).st_size > file["size"]
    except OSError:
        return False
    if not (flags & os.O_APPEND and flags & os.O_ACCMODE != os.O_RDONLY and grown):
        return False
    del file["size"]
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """What sockets shall be called: ``sockets`` are the records as they shall be restored, by their inodes.

    ``closed`` are those that are restored without their connection. ``elsewhere`` says where an address is that is
    named by a socket without a record (one on its way from process to process), and ``link`` what a link is called.
    """

    sockets: Mapping[int, Socket]
    closed: frozenset[int]
    elsewhere: Callable[[Endpoint], Endpoint]
    link: Callable[[str], str]

    def __call__(self, entry: dict[str, Any]) -> bool:
        """Rename what the entry of an inet or packet socket names; whether that changed anything."""
        socket = entry.get("isk") or entry.get("psk")
        if socket is None:
            return False
        before = repr(socket)
        options = socket.get("opts", {})
        if options.get("so_bound_dev"):
            options["so_bound_dev"] = self.link(options["so_bound_dev"])
        if "isk" in entry:
            self._name(socket)
        return repr(socket) != before

    def _name(self, socket: dict[str, Any]) -> None:
        if socket.get("ifname"):
            socket["ifname"] = self.link(socket["ifname"])
        if socket["ino"] in self.closed:
            _close(socket)
            return
        record = self.sockets.get(socket["ino"])
        for which, known in (("src", record and record.local), ("dst", record and record.remote)):
            there = Endpoint(address=_address(socket, which), port=socket[f"{which}_port"])
            # Of raw sockets the port is a protocol's number, and stays.
            with_port = known is not None and socket["proto"] in (IPPROTO_TCP, IPPROTO_UDP) and there.port
            end = known or (self.elsewhere(there) if record is None else there)
            _set_address(socket, which, end.address)
            if with_port:
                socket[f"{which}_port"] = end.port


def _close(socket: dict[str, Any]) -> None:
    """Let a TCP socket be one that was connected and has been shut down.

    That is what CRIU's own option does to each (restore_one_tcp, criu/sk-tcp.c: no bind, no connect, but a shutdown);
    it does it to all of them.
    """
    socket |= {"state": _TCP_CLOSE, "src_port": 0, "dst_port": 0, "shutdown": "BOTH"}
    for which in ("src", "dst"):
        socket[f"{which}_addr"] = [0] * _WORDS[socket["family"]]


def _address(socket: dict[str, Any], which: str) -> str:
    words = socket[f"{which}_addr"][: _WORDS[socket["family"]]]
    return ip_text(struct.pack(f"={len(words)}I", *words))


def _set_address(socket: dict[str, Any], which: str, address: str) -> None:
    packed = ip_bytes(address)
    if address != _address(socket, which):
        socket[f"{which}_addr"] = list(struct.unpack(f"={len(packed) // 4}I", packed))


def _flags(value: int | str) -> int:
    """pycriu gives flags as a number; as text when it was asked for a readable form."""
    return int(value, 0) if isinstance(value, str) else value
