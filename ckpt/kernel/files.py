"""What a process has open and mapped: ``/proc/PID/fd``, ``fdinfo`` and ``maps`` into records.

Nothing is opened but files of ``/proc`` itself (and, for build-ids, the regular files behind mappings): opening what
a descriptor refers to could block on a FIFO, wake a device or take a lock. A descriptor that is closed while it is
read is left out.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct

from ckpt.kernel import digests, elf, syscalls
from ckpt.model.process import Executable, FileKind, FileLock, MappedFile, MountPlace, OpenFile

DELETED = " (deleted)"
TTY_MAJORS = frozenset({3, 4, 5, *range(128, 144), 204, 229})
"""Device numbers of terminals (Documentation/admin-guide/devices.txt): virtual, console and ptmx, pts, serial, hvc."""
REPEATED_KEYS = frozenset(
    {"pos", "flags", "mnt_id", "ino", "lock", "tfd", "inotify wd", "fanotify ino", "fanotify sdev"}
)
"""Keys of fdinfo that have fields of their own or come once per watched object, thousands of times for some."""

TUNGETIFF = 0x800454D2
IFF_PERSIST = 0x0800
"""``linux/if_tun.h``."""

Identity = tuple[int, int]
"""Device and inode: one file."""
Looked = tuple[int | None, int | None, str | None, str | None]
"""Size, mode, build-id and, without that, digest of a mapped file, as far as they can be had."""
_DIGESTED_BYTES = 256 << 20


def text(raw: bytes) -> str:
    """Bytes of the kernel as a ``str`` that can be encoded again: what is not UTF-8 is shown as ``\\xNN``."""
    return raw.decode("utf-8", "backslashreplace")


def read_link(path: str) -> str:
    """Where a magic link points, as text."""
    return text(os.readlink(os.fsencode(path)))


def device_name(device: int) -> str:
    """``major:minor``."""
    return f"{os.major(device)}:{os.minor(device)}"


def split_deleted(path: str, links: int) -> tuple[str, bool]:
    """``path`` without the kernel's `` (deleted)``, and whether the name is gone.

    A file may really be called ``x (deleted)``; it then still has a link, and its name is found.
    """
    if not path.endswith(DELETED) or (links > 0 and os.path.lexists(path)):
        return path, False
    return path.removesuffix(DELETED), True


def read_executable(pid: int) -> Executable | None:
    """The program that ``pid`` runs; None for a kernel thread or a process that has ended."""
    link = f"/proc/{pid}/exe"
    try:
        target, status = read_link(link), os.stat(link)
    except OSError:
        return None
    path, deleted = split_deleted(target, status.st_nlink)
    build = elf.build_id(link)
    return Executable(
        path=path,
        device=device_name(status.st_dev),
        inode=status.st_ino,
        size=status.st_size,
        mode=status.st_mode,
        deleted=deleted,
        build_id=build,
        digest=None if build is not None else _digest(link, status),
    )


_digests: dict[tuple[int, ...], str | None] = {}


def _digest(link: str, status: os.stat_result) -> str | None:
    """What tells a program without a build-id from another; it is read again only when it has changed."""
    if status.st_size > _DIGESTED_BYTES:
        return None
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if identity not in _digests:
        _digests[identity] = digests.digest(link, status.st_size)
    return _digests[identity]


def _tun_info(pid: int, fd: int) -> dict[str, str]:
    """Whether the TUN link behind a descriptor stays when that is closed: only the descriptor itself can tell."""
    try:
        pidfd = syscalls.pidfd_open(pid)
        try:
            duplicate = syscalls.pidfd_getfd(pidfd, fd)
        finally:
            os.close(pidfd)
        try:
            answer = fcntl.ioctl(duplicate, TUNGETIFF, bytes(40))
        finally:
            os.close(duplicate)
    except OSError:
        return {}
    (flags,) = struct.unpack_from("=H", answer, 16)
    return {"persistent": "1" if flags & IFF_PERSIST else "0"}


def _kind(target: str, mode: int, rdev: int) -> FileKind:
    if target.startswith("anon_inode:"):
        return FileKind.ANON
    if target.startswith("/memfd:"):
        return FileKind.MEMFD
    if stat.S_ISCHR(mode):
        return FileKind.TTY if os.major(rdev) in TTY_MAJORS else FileKind.CHARACTER
    if stat.S_ISFIFO(mode):
        return FileKind.PIPE if target.startswith("pipe:[") else FileKind.FIFO
    if re.fullmatch(r"[a-z_]+:\[\d+\]", target) and not stat.S_ISSOCK(mode):
        return FileKind.NAMESPACE
    return {
        stat.S_IFREG: FileKind.REGULAR,
        stat.S_IFDIR: FileKind.DIRECTORY,
        stat.S_IFSOCK: FileKind.SOCKET,
        stat.S_IFBLK: FileKind.BLOCK,
        stat.S_IFLNK: FileKind.SYMLINK,
    }.get(stat.S_IFMT(mode), FileKind.OTHER)


def parse_lock(line: str) -> FileLock | None:
    """A ``lock:`` line of fdinfo, ``1: POSIX  ADVISORY  WRITE 71 08:01:1234 0 EOF``."""
    words = line.split()
    if len(words) < 8 or "->" in words:
        return None
    kind, _, access, pid, where, start, end = words[1:8]
    return FileLock(
        kind=kind,
        access=access,
        pid=int(pid),
        inode=int(where.rpartition(":")[2]),
        start=int(start),
        end=None if end == "EOF" else int(end),
    )


class FileReader:
    """Reads what the processes of a group have open and mapped; what they share is looked at once for all of them."""

    def __init__(self) -> None:
        self._mapped: dict[Identity, Looked] = {}
        self._mounts: dict[int, frozenset[int]] = {}
        self._devices = set(_mounts("self").values())

    def read_files(self, pid: int, mntns: int) -> tuple[OpenFile, ...]:
        """Every descriptor of ``pid``, which is in the mount namespace ``mntns``, in order."""
        try:
            fds = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return ()
        if mntns not in self._mounts:
            mounts = _mounts(str(pid))
            self._devices |= set(mounts.values())
            self._mounts[mntns] = frozenset(mounts)
        found = (self._read_file(pid, fd, self._mounts[mntns]) for fd in fds)
        return tuple(file for file in found if file is not None)

    def _read_file(self, pid: int, fd: int, mounts: frozenset[int]) -> OpenFile | None:
        """One descriptor, or None when it has just been closed."""
        link = f"/proc/{pid}/fd/{fd}"
        try:
            target, status = read_link(link), os.stat(link)
            with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
                lines = text(file.read()).splitlines()
        except OSError:
            return None
        pairs = [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines)]
        values = dict(pairs)
        kind = _kind(target, status.st_mode, status.st_rdev)
        path, deleted = split_deleted(target, status.st_nlink)
        mount = int(values.get("mnt_id", "0"))
        node = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
        return OpenFile(
            fd=fd,
            kind=kind,
            path=path.removeprefix("anon_inode:").strip("[]") if kind is FileKind.ANON else path,
            flags=int(values.get("flags", "0"), 8),
            position=int(values.get("pos", "0")),
            mount_id=mount,
            mode=status.st_mode,
            inode=status.st_ino,
            device=device_name(status.st_dev),
            special=device_name(status.st_rdev) if node else None,
            size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
            deleted=deleted and kind is not FileKind.MEMFD,
            mount=MountPlace.INSIDE if mount in mounts else self._place(status.st_dev),
            info={key: value for key, value in pairs if key not in REPEATED_KEYS and not key.startswith("inotify")}
            | (_tun_info(pid, fd) if "iff" in values else {}),
            locks=tuple(lock for key, value in pairs if key == "lock" and (lock := parse_lock(value)) is not None),
        )

    def _place(self, device: int) -> MountPlace:
        return MountPlace.OUTSIDE if device_name(device) in self._devices else MountPlace.INTERNAL

    def read_maps(self, pid: int) -> tuple[MappedFile, ...]:
        """The files ``pid`` has mapped, in the order of their first address."""
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                lines = text(file.read()).splitlines()
        except OSError:
            return ()
        mapped: dict[tuple[str, str, int], list[tuple[str, str]]] = {}
        for line in lines:
            words = line.split(maxsplit=5)
            # [heap], [stack] … are of no device. Not so by their inode: that of the first System V segment since boot
            # is its id, 0 (newseg in ipc/shm.c).
            if len(words) < 6 or words[3] == "00:00":
                continue
            span, perms, _, device, inode, path = words
            mapped.setdefault((path, device, int(inode)), []).append((span, perms))
        return tuple(self._file(pid, *key, spans) for key, spans in mapped.items())

    def _file(self, pid: int, path: str, device: str, inode: int, spans: list[tuple[str, str]]) -> MappedFile:
        executable = any("x" in perms for _, perms in spans)
        major, minor = (int(part, 16) for part in device.split(":"))
        size, mode, build, digest = self._look(pid, spans[0][0], (os.makedev(major, minor), inode), executable)
        return MappedFile(
            path=path.removesuffix(DELETED),
            device=f"{major}:{minor}",
            inode=inode,
            executable=executable,
            shared=any("s" in perms for _, perms in spans),
            writable=any("w" in perms for _, perms in spans),
            deleted=path.endswith(DELETED),
            size=size,
            mode=mode,
            build_id=build,
            digest=digest,
        )

    def _look(self, pid: int, span: str, identity: Identity, executable: bool) -> Looked:
        if identity in self._mapped:
            return self._mapped[identity]
        # maps pads addresses to eight digits, the names in map_files are not padded
        link = f"/proc/{pid}/map_files/" + "-".join(f"{int(address, 16):x}" for address in span.split("-"))
        try:
            status = os.stat(link)
        except OSError:
            return None, None, None, None
        program = executable and stat.S_ISREG(status.st_mode)
        build = elf.build_id(link) if program else None
        digest = _digest(link, status) if program and build is None else None
        self._mapped[identity] = status.st_size, status.st_mode, build, digest
        return self._mapped[identity]


def _mounts(pid: str) -> dict[int, str]:
    """The mounts a process sees: their ids, with the ``major:minor`` of what is mounted."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            lines = [line.split(maxsplit=3) for line in file]
    except OSError:
        return {}
    return {int(words[0]): words[2].decode() for words in lines}
