"""The mount namespace of a group: what sets it apart from the host's, and how it is made again.

CRIU can dump mount namespaces, but not one that was split off the host's: propagation from the host, files opened
before the split and mounts that no image can hold all end the dump. What such namespaces really contain is the host's
mounts and a few of their own (`ip netns exec` makes one with another /sys). So CRIU is run *inside* the group's mount
namespace, where it sees none to dump; the mounts of its own travel as records, and a restore makes them first and
then runs CRIU in there.

Two things follow. A file that was opened outside of the namespace has a mount CRIU cannot find ("Can't lookup mount",
criu/files-reg.c) and must be declared external. And where the namespace has a /proc of an inner PID namespace, CRIU
needs the host's in its place for as long as it runs there.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckpt.errors import RefusedError, UnsupportedError
from ckpt.kernel import syscalls
from ckpt.kernel.procfs import read_text
from ckpt.model.checkpoint import InheritedFile, Mount
from ckpt.model.process import FileKind, Process
from ckpt.records import dataclass

_CLONE_FS = 0x200

_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
}
_MS_REMOUNT = 0x20

_ON_A_MOUNT = (FileKind.REGULAR, FileKind.DIRECTORY, FileKind.CHARACTER, FileKind.BLOCK, FileKind.FIFO)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of mountinfo (proc(5))."""

    mount_id: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    kind: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.device, self.root, self.target, self.kind)


def _read(pid: int | str) -> list[_Line]:
    lines = []
    for text in read_text(f"/proc/{pid}/mountinfo").splitlines():
        head, _, tail = text.partition(" - ")
        words = head.split(" ")
        root, target = (_plain(word) for word in words[3:5])
        lines.append(_Line(int(words[0]), words[2], root, target, tuple(words[5].split(",")), tail.split(" ")[0]))
    return lines


def _plain(word: str) -> str:
    """A path of mountinfo without the kernel's octal escapes of blanks and backslashes."""
    for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(escape, char)
    return word


def _root(lines: Sequence[_Line]) -> tuple[str, str, str, str] | None:
    """What is mounted at the root: the last of several, which lie over each other."""
    return next((line.key for line in reversed(lines) if line.target == "/"), None)


def is_own(pid: int) -> bool:
    """Whether task ``pid`` is in the mount namespace that ckpt is in."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino


def read_mounts(pid: int) -> tuple[Mount, ...] | None:
    """The mounts that ``pid``'s namespace has and ckpt's has not, in order; None when it is ckpt's own namespace.

    Raises RefusedError (`mount-namespace`) when it is not a variation of the host's, or holds what cannot be made
    again (a tmpfs of its own, say).
    """
    if is_own(pid):
        return None
    host, theirs = _read("self"), _read(pid)
    if _root(theirs) != _root(host):
        raise _refuse(pid, "its root is on another file system than the host's, as a container's is")
    unseen = Counter(line.key for line in theirs) - Counter(line.key for line in host)
    mounts = []
    for line in theirs:
        if unseen[line.key] > 0:
            unseen[line.key] -= 1
            mounts.append(_mount(pid, line, host))
    return tuple(mount for mount in mounts if mount is not None)


def _mount(pid: int, line: _Line, host: Sequence[_Line]) -> Mount | None:
    if line.kind == "nsfs":
        return None  # a name of some namespace, such as `ip netns add` makes; nothing of the group
    options = tuple(option for option in line.options if option in _FLAGS)
    if line.kind in ("sysfs", "proc"):
        return Mount(target=line.target, kind=line.kind, options=options)
    for other in host:
        inside = os.path.relpath(line.root, other.root)
        if other.device == line.device and not inside.startswith(".."):
            source = os.path.normpath(os.path.join(other.target, inside))
            return Mount(target=line.target, kind="bind", source=source, options=options)
    raise _refuse(pid, f"it has a {line.kind} of its own at {line.target}")


def _refuse(pid: int, why: str) -> RefusedError:
    return RefusedError(
        f"the mount namespace of PID {pid} cannot be taken along",
        code="mount-namespace",
        details=why,
        hint="start the group with `ckpt run`, which leaves it in the host's mount namespace",
    )


def foreign_files(processes: Sequence[Process]) -> tuple[InheritedFile, ...]:
    """The files of ``processes`` that were opened in another mount namespace than their own."""
    found: dict[str, InheritedFile] = {}
    for process in processes:
        known = {line.mount_id for line in _read(process.pid)}
        for file in process.files:
            if file.kind not in _ON_A_MOUNT or file.mount_id in known or not known:
                continue
            key = f"file[{file.mount_id:x}:{file.inode:x}]"
            found.setdefault(key, InheritedFile(key=key, path=file.path, flags=file.flags, position=file.position))
    return tuple(found.values())


def create(mounts: Sequence[Mount], netns: int | None) -> int:
    """A descriptor of a mount namespace like ckpt's own with ``mounts`` on top; a sysfs shows ``netns``.

    A ``proc`` is left out: it belongs to a PID namespace that is not there yet; ``mount_proc`` adds it.
    Raises UnsupportedError (`mount-namespace-create`) with the mount that failed.
    """
    made: list[int] = []

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        # Slave: what the host mounts later is seen here, and nothing of here is seen there.
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
        if netns is not None:
            syscalls.setns(netns, syscalls.CLONE_NEWNET)
        for mount in mounts:
            if mount.kind != "proc":
                _attach(mount)
        made.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))

    _in_thread(make, "mount-namespace-create", "cannot make the group's mount namespace")
    return made[0]


def _attach(mount: Mount) -> None:
    flags = 0
    for option in mount.options:
        flags |= _FLAGS[option]
    if mount.kind == "bind":
        syscalls.mount(mount.source, mount.target, "", syscalls.MS_BIND)
        if flags:
            syscalls.mount("", mount.target, "", syscalls.MS_BIND | _MS_REMOUNT | flags)
        return
    with contextlib.suppress(OSError):
        # As `ip netns exec` does: the host's /sys would go on showing the host's links beneath.
        syscalls.umount2(mount.target, syscalls.MNT_DETACH)
    syscalls.mount(mount.kind, mount.target, mount.kind, flags)


def mount_proc(pid: int, target: str = "/proc") -> None:
    """Mount, in the mount namespace of ``pid``, a /proc that shows the PID namespace of ``pid``."""

    def make() -> None:
        _enter_mntns(pid)
        # A proc shows the PID namespace of who mounts it; a PID namespace is entered by children only.
        fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, syscalls.CLONE_NEWPID)
        os.close(fd)
        child = os.fork()
        if child == 0:
            try:
                syscalls.mount("proc", target, "proc")
                os._exit(0)
            except BaseException:
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            raise OSError(0, f"mounting {target} failed")

    _in_thread(make, "mount-proc", f"cannot mount {target} for the group")


@contextlib.contextmanager
def hosts_proc(pid: int) -> Iterator[None]:
    """The host's /proc covers that of ``pid``'s mount namespace; removed at the end if the namespace still is there."""

    def cover() -> None:
        _enter_mntns(pid)
        syscalls.mount("ckpt-proc", "/proc", "proc")

    _in_thread(cover, "mount-proc", "cannot show CRIU the host's /proc in the group's mount namespace")
    try:
        yield
    finally:
        if Path(f"/proc/{pid}/ns/mnt").exists():
            uncover(pid)


def uncover(pid: int) -> bool:
    """Take away the cover that ``hosts_proc`` put over ``pid``'s /proc; whether there was one."""
    if not any(" - proc ckpt-proc " in text for text in read_text(f"/proc/{pid}/mountinfo").splitlines()):
        return False

    def remove() -> None:
        _enter_mntns(pid)
        syscalls.umount2("/proc", syscalls.MNT_DETACH)

    _in_thread(remove, "mount-proc", "cannot take the host's /proc out of the group's mount namespace")
    return True


def _enter_mntns(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Threads share their root and working directory, and one that does cannot change its mount namespace.
        syscalls.unshare(_CLONE_FS)
        syscalls.setns(fd, syscalls.CLONE_NEWNS)
    finally:
        os.close(fd)


def _in_thread(work: Callable[[], None], code: str, brief: str) -> None:
    """Do ``work`` in a thread that ends with it, so that the caller stays where it is whatever happens."""
    failures: list[OSError] = []

    def guarded() -> None:
        try:
            work()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, name=f"ckpt-{code}")
    thread.start()
    thread.join()
    if failures:
        raise UnsupportedError(brief, code=code, details=str(failures[0])) from failures[0]
