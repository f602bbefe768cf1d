"""A directory whose files are in nobody's memory until they are read: the kernel asks us for each piece (FUSE).

CRIU reads memory by offsets, which a pipe cannot give it and for which an image would have to be unpacked first. Here
it reads the image itself, and each piece goes from us into the pages of the task that is restored: no other copy of
it is made. The mount is attached to nothing, as that of `tmpfs`: who has a descriptor sees it, and nobody else. When we
have gone, however it came to that, every read in it fails at once, and so does the restore.

Only what CRIU does in a directory of images that it restores from is answered: looking up a name, and reading a file.
The protocol's messages are those of the kernel's include/uapi/linux/fuse.h, 7.26 and later.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import stat
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, Self

from ckpt.kernel import syscalls
from ckpt.records import dataclass

_log = logging.getLogger(__name__)

Piece = bytes | bytearray | memoryview

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET = (
    *(1, 2, 3, 14, 15, 18),
    *(26, 36, 38, 42),
)
_UNANSWERED: Final = (_FORGET, _BATCH_FORGET, _INTERRUPT)

_IN = struct.Struct("=IIQQIIIHH")  # fuse_in_header: length, opcode, unique, nodeid, uid, gid, pid and what is not used
_OUT = struct.Struct("=IiQ")  # fuse_out_header: length, error, unique
_ATTRIBUTES = struct.Struct("=6Q10I")  # fuse_attr
_ENTRY = struct.Struct("=4Q2I")  # fuse_entry_out up to its attributes
_VALID = struct.Struct("=QII")  # fuse_attr_out up to them
_INIT_IN = struct.Struct("=4I")
_INIT_OUT = struct.Struct("=4I2H2I2HI7I")  # fuse_init_out
_READ_IN = struct.Struct("=2QI")  # fuse_read_in up to the size
_OPEN_OUT = struct.Struct("=Q2I")

_MAJOR, _MINOR = 7, 31
_MAX_PAGES: Final = 1 << 22  # FUSE_MAX_PAGES: a read may be larger than 128 KiB
_DIRECT_IO: Final = 1  # FOPEN_DIRECT_IO: into the reader's pages, not by way of the page cache
_LARGEST: Final = 256  # pages in one read, which is what kernels allow
_BUFFER: Final = 64 * 1024  # bytes of a request; the least is 8 KiB
_ROOT: Final = 1  # the node of the directory itself
_FOREVER: Final = 1 << 30  # seconds for which an answer stays true

_MOST_THREADS: Final = 4


class Served(Protocol):
    """A file of the directory."""

    @property
    def length(self) -> int:
        """Its bytes."""

    def read(self, offset: int, size: int) -> Sequence[Piece]:
        """So many bytes from there on, less only at the end. May be called by several threads."""


@dataclass(frozen=True, slots=True)
class _Plain:
    """A file behind ``fd``."""

    fd: int
    length: int

    def read(self, offset: int, size: int) -> Sequence[Piece]:
        """From the file."""
        return (os.pread(self.fd, size, offset),)


class Directory:
    """A read-only directory, of the files that ``serve`` is given; ``mount`` is a descriptor of it.

    A context manager: at its end it answers nobody any more. What ``read`` of a file raises becomes an error of who
    reads, and is kept in ``failure``. OSError where the kernel has no FUSE.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._served: Mapping[str, Served] = {}
        self._nodes: dict[int, Served] = {}
        self._numbers: dict[str, int] = {}
        self._turn = threading.Lock()
        with contextlib.ExitStack() as stack:
            self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, self._device)
            self.mount = _mount(self._device)
            stack.callback(os.close, self.mount)
            self._end = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, self._end)
            stack.callback(self._close_files)
            stack.callback(self._end_threads)
            self._stack = stack.pop_all()
        count = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._threads = [self._thread() for _ in range(count)]

    def serve(self, served: Mapping[str, Served], beside: int) -> None:
        """Have the files ``served`` there, and every other one that is in the directory ``beside`` by then."""
        self._served = served
        self._beside = beside
        # A signal is not to be delivered to them that the caller makes wait (`ckpt.holding`).
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            for thread in self._threads:
                thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # From now on the kernel knows itself what kind of thing this is, and nobody who asks has to wait for us.
        os.fstat(self.mount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Answer nobody any more. Again is nothing."""
        self._stack.close()

    def _thread(self) -> threading.Thread:
        return threading.Thread(target=self._answer_all, name="ckpt-fuse", daemon=True)

    def _end_threads(self) -> None:
        os.eventfd_write(self._end, 1)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _close_files(self) -> None:
        for file in self._nodes.values():
            if isinstance(file, _Plain):
                os.close(file.fd)

    def _answer_all(self) -> None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        request = bytearray(_BUFFER)
        while True:
            ready = dict(poll.poll())
            if self._end in ready:
                return
            try:
                count = os.readv(self._device, [request])
            except OSError as error:
                # Another thread has taken it; or who asked was killed before (ENOENT).
                if error.errno in (errno.EAGAIN, errno.ENOENT, errno.EINTR):
                    continue
                return  # ENODEV: nobody has a descriptor of the mount any more
            self._answer(memoryview(request)[:count])

    def _answer(self, request: memoryview) -> None:
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if opcode in _UNANSWERED:
            return
        code = 0
        answer: Sequence[Piece] = ()
        try:
            answer = self._act(opcode, node, request[_IN.size :])
        except OSError as error:
            code = error.errno or errno.EIO
        except Exception as error:
            self.failure = self.failure or error
            code = errno.EIO
        length = _OUT.size + sum(len(piece) for piece in answer)
        # ENOENT: who asked is gone.
        with contextlib.suppress(FileNotFoundError):
            os.writev(self._device, [_OUT.pack(length, -code, unique), *answer])

    def _act(self, opcode: int, node: int, body: memoryview) -> Sequence[Piece]:
        if opcode == _READ:
            _, offset, size = _READ_IN.unpack_from(body)
            return self._nodes[node].read(offset, size)
        if opcode == _LOOKUP:
            return (self._look_up(os.fsdecode(bytes(body).rstrip(b"\0"))),)
        if opcode == _GETATTR:
            return (_VALID.pack(_FOREVER, 0, 0) + self._attributes(node),)
        if opcode == _OPEN:
            # Small ones through the page cache: CRIU reads them in bits.
            flags = 0 if isinstance(self._nodes[node], _Plain) else _DIRECT_IO
            return (_OPEN_OUT.pack(0, flags, 0),)
        if opcode == _INIT:
            return (_begin(body),)
        if opcode in (_RELEASE, _DESTROY):
            return ()
        raise OSError(errno.ENOSYS, "not answered here")

    def _look_up(self, name: str) -> bytes:
        with self._turn:
            if name not in self._numbers:
                file = self._served[name] if name in self._served else _plain(name, self._beside)
                self._numbers[name] = number = _ROOT + 1 + len(self._numbers)
                self._nodes[number] = file
        node = self._numbers[name]
        return _ENTRY.pack(node, 0, _FOREVER, _FOREVER, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        """Of the directory no size: it is told by that to be none of ours that is marked (`remains`)."""
        size = 0 if node == _ROOT else self._nodes[node].length
        mode = stat.S_IFDIR | 0o700 if node == _ROOT else stat.S_IFREG | 0o400
        return _ATTRIBUTES.pack(node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _mount(device: int) -> int:
    context = syscalls.fsopen("fuse")
    try:
        for key, value in (("fd", str(device)), ("rootmode", "40700"), ("user_id", "0"), ("group_id", "0")):
            syscalls.fsconfig_set(context, key, value)
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)


def _begin(body: memoryview) -> bytes:
    major, minor, ahead, flags = _INIT_IN.unpack_from(body)
    if major != _MAJOR:
        raise OSError(errno.EPROTO, f"FUSE {major}.{minor}")
    spare = (0,) * 7
    return _INIT_OUT.pack(_MAJOR, _MINOR, ahead, flags & _MAX_PAGES, 0, 0, 4096, 1, _LARGEST, 0, 0, *spare)


def _plain(name: str, directory: int) -> _Plain:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    return _Plain(fd, os.fstat(fd).st_size)
