"""Kernel objects that a process may hold, each with a check that it came through a dump and a restore unharmed.

Each object is a generator: it makes the thing, yields, and then uses it up, comparing what it finds. The program
makes those it is named, accepts one TCP connection, says ``ready`` there, waits for a line, checks, and answers with
``ok`` or with what was wrong. So a test needs no more than that connection, which has to survive as well.

    objects.py PORT DIRECTORY OBJECT…
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

Object = Callable[[Path], Iterator[None]]

OBJECTS: dict[str, Object] = {}

FAMILIES: dict[str, list[str]] = {}
"""The names of objects that can be made by one process side by side."""

PATIENCE = 20.0
"""Less than the test's own, which shall hear what was waited for."""

libc = ctypes.CDLL(None, use_errno=True)


def kernel_object(family: str) -> Callable[[Object], Object]:
    """Make a function known by its name."""

    def add(function: Object) -> Object:
        OBJECTS[function.__name__] = function
        FAMILIES.setdefault(family, []).append(function.__name__)
        return function

    return add


def expect(found: object, wanted: object, what: str = "") -> None:
    """Raise unless both are equal."""
    if found != wanted:
        raise AssertionError(f"{what or 'value'}: {found!r}, not {wanted!r}")


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain until {what}")
        time.sleep(0.01)


def in_child(work: Callable[[], None]) -> int:
    """Do ``work`` in a child; its exit status, 1 when it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- pipes and unix sockets --------------------------------------------------------------------------------------


@kernel_object("pipes_and_unix_sockets")
def pipe(_: Path) -> Iterator[None]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 17)
    queued = bytes(range(256)) * 400
    os.write(writer, queued)
    yield
    expect(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ), 1 << 17, "size")
    found = b""
    while len(found) < len(queued):
        found += os.read(reader, 1 << 16)
    expect(found, queued)
    os.write(writer, b"new")
    expect(os.read(reader, 16), b"new")


@kernel_object("pipes_and_unix_sockets")
def fifo(directory: Path) -> Iterator[None]:
    os.mkfifo(directory / "fifo")
    both = os.open(directory / "fifo", os.O_RDWR)
    os.write(both, b"queued")
    yield
    expect(os.read(both, 16), b"queued")


def _pair(kind: socket.SocketKind) -> Iterator[None]:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    for number in range(3):
        left.send(b"to the right %d" % number)
        right.send(b"to the left %d" % number)
    yield
    for end, direction in ((right, b"to the right"), (left, b"to the left")):
        messages = [direction + b" %d" % number for number in range(3)]
        if kind == socket.SOCK_STREAM:
            expect(end.recv(1 << 16), b"".join(messages))
        else:
            expect([end.recv(1 << 16) for _ in messages], messages)
    left.send(b"new")
    expect(right.recv(16), b"new")


@kernel_object("pipes_and_unix_sockets")
def pair_stream(_: Path) -> Iterator[None]:
    yield from _pair(socket.SOCK_STREAM)


@kernel_object("pipes_and_unix_sockets")
def pair_dgram(_: Path) -> Iterator[None]:
    yield from _pair(socket.SOCK_DGRAM)


@kernel_object("pipes_and_unix_sockets")
def pair_seqpacket(_: Path) -> Iterator[None]:
    yield from _pair(socket.SOCK_SEQPACKET)


@kernel_object("pipes_and_unix_sockets")
def pair_half_closed(_: Path) -> Iterator[None]:
    left, right = socket.socketpair()
    left.send(b"last words")
    left.shutdown(socket.SHUT_WR)
    yield
    expect(right.recv(64), b"last words")
    expect(right.recv(64), b"", "end of stream")
    right.send(b"answer")
    expect(left.recv(64), b"answer")


def _listener(kind: socket.SocketKind, name: str) -> Iterator[None]:
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(name)
    server.listen(7)
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(name)
    accepted = server.accept()[0]
    client.send(b"question")
    yield
    expect(server.getsockname(), name.encode() if name.startswith("\0") else name, "name")
    expect(accepted.recv(64), b"question")
    accepted.send(b"answer")
    expect(client.recv(64), b"answer")
    other = socket.socket(socket.AF_UNIX, kind)
    other.connect(name)
    other.send(b"second")
    expect(server.accept()[0].recv(64), b"second")


@kernel_object("pipes_and_unix_sockets")
def unix_named_stream(directory: Path) -> Iterator[None]:
    yield from _listener(socket.SOCK_STREAM, str(directory / "stream"))


@kernel_object("pipes_and_unix_sockets")
def unix_named_seqpacket(directory: Path) -> Iterator[None]:
    yield from _listener(socket.SOCK_SEQPACKET, str(directory / "seqpacket"))


@kernel_object("pipes_and_unix_sockets")
def unix_abstract_stream(_: Path) -> Iterator[None]:
    yield from _listener(socket.SOCK_STREAM, f"\0ckpt-{os.getpid()}-{time.time_ns()}")


@kernel_object("pipes_and_unix_sockets")
def unix_named_dgram(directory: Path) -> Iterator[None]:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(directory / "dgram"))
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.connect(str(directory / "dgram"))
    client.send(b"first")
    client.send(b"second")
    yield
    expect([server.recv(64), server.recv(64)], [b"first", b"second"])
    client.send(b"third")
    expect(server.recv(64), b"third")


@kernel_object("pipes_and_unix_sockets")
def descriptor_in_flight(directory: Path) -> Iterator[None]:
    left, right = socket.socketpair()
    (directory / "passed").write_bytes(b"content")
    with (directory / "passed").open("rb") as passed:
        socket.send_fds(left, [b"x"], [passed.fileno()])
    yield
    _, fds, _, _ = socket.recv_fds(right, 1, 1)
    expect(os.read(fds[0], 64), b"content")


# -- files ---------------------------------------------------------------------------------------------------------


@kernel_object("files")
def file_position(directory: Path) -> Iterator[None]:
    (directory / "file").write_bytes(b"0123456789")
    opened = os.open(directory / "file", os.O_RDWR | os.O_APPEND)
    os.lseek(opened, 4, os.SEEK_SET)
    shared = os.dup(opened)
    yield
    expect(os.read(opened, 2), b"45")
    expect(os.read(shared, 2), b"67", "the duplicate, with the position shared")
    expect(bool(fcntl.fcntl(opened, fcntl.F_GETFL) & os.O_APPEND), True, "O_APPEND")


@kernel_object("files")
def deleted_file(directory: Path) -> Iterator[None]:
    path = directory / "ghost"
    content = os.urandom(3 << 20)
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(opened, content)
    path.unlink()
    yield
    expect(os.pread(opened, 4 << 20, 0) == content, True, "the content is the same")
    expect(os.fstat(opened).st_nlink, 0, "names")
    expect(path.exists(), False, f"{path} exists")


@kernel_object("files")
def renamed_link(directory: Path) -> Iterator[None]:
    path = directory / "linked"
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(opened, b"content")
    os.link(path, directory / "other")
    path.unlink()
    yield
    expect(os.pread(opened, 64, 0), b"content")
    expect((directory / "other").read_bytes(), b"content")
    expect(sorted(one.name for one in directory.iterdir()), ["other"], "names left")


@kernel_object("files")
def lock_flock(directory: Path) -> Iterator[None]:
    holder = os.open(directory / "flock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    yield
    other = os.open(directory / "flock", os.O_RDWR)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise AssertionError("the flock is gone")


@kernel_object("files")
def lock_posix(directory: Path) -> Iterator[None]:
    holder = os.open(directory / "posix", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(holder, fcntl.LOCK_EX, 10, 5)

    def take(start: int) -> None:
        other = os.open(directory / "posix", os.O_RDWR)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)

    yield
    expect(in_child(lambda: take(7)), 1, "a lock within")
    expect(in_child(lambda: take(20)), 0, "a lock beside")


@kernel_object("files")
def pseudoterminal(_: Path) -> Iterator[None]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, 0x5414, struct.pack("4H", 33, 77, 0, 0))  # TIOCSWINSZ
    os.write(master, b"typed\n")
    yield
    expect(struct.unpack("4H", fcntl.ioctl(slave, 0x5413, bytes(8)))[:2], (33, 77), "size")  # TIOCGWINSZ
    os.write(master, b"more\n")
    os.read(slave, 64)
    os.write(slave, b"shown")
    until(lambda: b"shown" in os.read(master, 1 << 12), "the master shows it")


# -- memory --------------------------------------------------------------------------------------------------------


@kernel_object("memory")
def memory_private(_: Path) -> Iterator[None]:
    content = os.urandom(8 << 20)
    copy = bytearray(content)
    digest = hash(bytes(copy))
    yield
    expect(hash(bytes(copy)), digest, "hash")
    expect(bytes(copy) == content, True, "the content is the same")


@kernel_object("memory")
def memory_of_many_pieces(_: Path) -> Iterator[None]:
    """Each shared mapping is an image of its own to CRIU; every third has never been touched."""
    pieces = [mmap.mmap(-1, 8192) for _ in range(60)]
    for number, piece in enumerate(pieces):
        if number % 3:
            piece[4096:4100] = number.to_bytes(4, "big")
    yield
    for number, piece in enumerate(pieces):
        expect(piece[4096:4100], (number if number % 3 else 0).to_bytes(4, "big"), f"piece {number}")


@kernel_object("memory")
def memory_shared_with_child(_: Path) -> Iterator[None]:
    shared = mmap.mmap(-1, 4096)
    parent_end, child_end = socket.socketpair()
    child = os.fork()
    if child == 0:
        parent_end.close()
        while word := child_end.recv(16):
            shared[: len(word)] = word
            child_end.send(b"done")
        os._exit(0)
    child_end.close()
    yield
    parent_end.send(b"written")
    expect(parent_end.recv(16), b"done")
    expect(shared[:7], b"written")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@kernel_object("memory")
def memory_file(_: Path) -> Iterator[None]:
    made = os.memfd_create("ckpt", os.MFD_ALLOW_SEALING)
    os.write(made, b"content of a memfd")
    mapped = mmap.mmap(made, 18)
    fcntl.fcntl(made, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK
    yield
    expect(os.pread(made, 64, 0), b"content of a memfd")
    mapped[:7] = b"CONTENT"
    expect(os.pread(made, 7, 0), b"CONTENT", "seen through the mapping")
    expect(fcntl.fcntl(made, 1034), 2, "seals")


@kernel_object("memory")
def memory_mapped_file(directory: Path) -> Iterator[None]:
    path = directory / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as opened:
        mapped = mmap.mmap(opened.fileno(), 4096)
    mapped[:6] = b"before"
    yield
    expect(mapped[:6], b"before")
    mapped[:6] = b"after "
    mapped.flush()
    expect(path.read_bytes()[:6], b"after ")


@kernel_object("memory")
def system_v(_: Path) -> Iterator[None]:
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0x434B, 4096, 0o1600)
    address = libc.shmat(segment, None, 0)
    ctypes.memmove(address, b"segment", 7)
    queue = libc.msgget(0x434B, 0o1600)
    message = struct.pack("l", 5) + b"message"
    expect(libc.msgsnd(queue, message, 7, 0), 0, "msgsnd")
    semaphores = libc.semget(0x434B, 1, 0o1600)
    libc.semctl(semaphores, 0, 16, 42)  # SETVAL
    yield
    expect(ctypes.string_at(address, 7), b"segment")
    expect(libc.shmget(0x434B, 4096, 0o600), segment, "the segment's identifier")
    received = ctypes.create_string_buffer(64)
    expect(libc.msgrcv(queue, received, 56, 5, 0), 7, "bytes of the message")
    expect(received.raw[8:15], b"message")
    expect(libc.semctl(semaphores, 0, 12), 42, "the semaphore's value")  # GETVAL


# -- processes -----------------------------------------------------------------------------------------------------


@kernel_object("processes")
def threads(_: Path) -> Iterator[None]:
    counts = [0, 0, 0]
    stop = threading.Event()

    def count(place: int) -> None:
        while not stop.wait(0.005):
            counts[place] += 1

    running = [threading.Thread(target=count, args=(place,)) for place in range(3)]
    for thread in running:
        thread.start()
    idents = [thread.native_id for thread in running]
    yield
    before = list(counts)
    until(lambda: all(now > then for now, then in zip(counts, before, strict=True)), "all threads count on")
    expect([thread.native_id for thread in running], idents)
    stop.set()


@kernel_object("processes")
def children(_: Path) -> Iterator[None]:
    """A child, a grandchild in a session of its own, and a child that has ended and was not waited for."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        grandchild = os.fork()
        if grandchild == 0:
            os.setsid()
            os.write(writer, struct.pack("i", os.getpid()))
            signal.pause()
        signal.pause()
    ended = os.fork()
    if ended == 0:
        os._exit(7)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    grandchild = struct.unpack("i", os.read(reader, 4))[0]
    until(lambda: os.getpgid(child) == child, "the child is a group")
    yield
    expect(os.getpgid(child), child, "the child's group")
    expect(os.getsid(grandchild), grandchild, "the grandchild's session")
    expect(os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1]), 7, "the status of the ended child")
    os.kill(grandchild, signal.SIGKILL)
    os.kill(child, signal.SIGTERM)
    expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), -signal.SIGTERM)


@kernel_object("processes")
def stopped_child(_: Path) -> Iterator[None]:
    child = os.fork()
    if child == 0:
        signal.pause()
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    yield
    # The kernel tells of a continued child only when it was stopped.
    os.kill(child, signal.SIGCONT)
    until(lambda: os.waitpid(child, os.WCONTINUED | os.WNOHANG) == (child, 0xFFFF), "the child goes on")
    os.kill(child, signal.SIGKILL)
    expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), -signal.SIGKILL)


@kernel_object("processes")
def surroundings(directory: Path) -> Iterator[None]:
    """Working directory, umask, limits, priority, hostname, environment, command line."""
    os.chdir(directory)
    os.umask(0o027)
    resource.setrlimit(resource.RLIMIT_NOFILE, (333, 999))
    os.setpriority(os.PRIO_PROCESS, 0, 3)
    hostname, pid, parent, session = socket.gethostname(), os.getpid(), os.getppid(), os.getsid(0)
    yield
    expect(os.getcwd(), str(directory), "working directory")
    expect(os.umask(0o022), 0o027, "umask")
    expect(resource.getrlimit(resource.RLIMIT_NOFILE), (333, 999), "limit of open files")
    expect(os.getpriority(os.PRIO_PROCESS, 0), 3, "priority")
    expect(socket.gethostname(), hostname, "hostname")
    expect((os.getpid(), os.getppid(), os.getsid(0)), (pid, parent, session), "ids")


@kernel_object("credentials")
def credentials(directory: Path) -> Iterator[None]:
    parent_end, child_end = socket.socketpair()
    directory.chmod(0o755)
    child = os.fork()
    if child == 0:
        parent_end.close()
        os.setgroups([1001, 1002])
        os.setresgid(1001, 1001, 1001)
        os.setresuid(1000, 1000, 1000)
        while child_end.recv(1):
            child_end.send(repr((os.getresuid(), os.getresgid(), sorted(os.getgroups()))).encode())
        os._exit(0)
    child_end.close()
    parent_end.send(b"x")
    before = parent_end.recv(256)
    yield
    parent_end.send(b"x")
    expect(parent_end.recv(256), before)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# -- signals, timers, events -----------------------------------------------------------------------------------------


@kernel_object("events")
def pending_signal(_: Path) -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.kill(os.getpid(), signal.SIGUSR2)
    yield
    expect(signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, []), True, "SIGUSR2 is blocked")
    expect(signal.sigtimedwait([signal.SIGUSR2], 0) is not None, True, "SIGUSR2 is pending")


@kernel_object("events")
def interval_timer(_: Path) -> Iterator[None]:
    ticks: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: ticks.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    yield
    before = len(ticks)
    until(lambda: len(ticks) > before, "the timer ticks on")
    signal.setitimer(signal.ITIMER_REAL, 0)


@kernel_object("events")
def timer_descriptor(_: Path) -> Iterator[None]:
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
    libc.timerfd_settime(timer, 0, struct.pack("4q", 0, 0, 1, 0), None)
    yield
    expect(bool(select.select([timer], [], [], PATIENCE)[0]), True, "the timer expires")
    expect(os.read(timer, 8), struct.pack("q", 1), "how often it has expired")


@kernel_object("periodic_timer_descriptor")
def periodic_timer_descriptor(_: Path) -> Iterator[None]:
    """One that has expired, and nobody has read it yet."""
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    libc.timerfd_settime(timer, 0, struct.pack("4q", 0, 50_000_000, 0, 50_000_000), None)
    select.select([timer], [], [], PATIENCE)
    yield
    with contextlib.suppress(BlockingIOError):
        os.read(timer, 8)
    expect(bool(select.select([timer], [], [], PATIENCE)[0]), True, "the timer expires on")


@kernel_object("events")
def epoll(_: Path) -> Iterator[None]:
    reader, writer = os.pipe()
    event = os.eventfd(3)
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN | select.EPOLLET)
    poll.register(event, select.EPOLLIN | select.EPOLLONESHOT)
    os.write(writer, b"x")
    yield
    found: set[int] = set()
    while found != {reader, event}:
        ready = poll.poll(PATIENCE)
        expect(bool(ready), True, "an event comes")
        found.update(fd for fd, _ in ready)
    expect(os.eventfd_read(event), 3, "the event's count")


@kernel_object("events")
def signal_descriptor(_: Path) -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    mask = (ctypes.c_ulong * 16)(1 << (signal.SIGRTMIN - 1))
    descriptor = libc.signalfd(-1, mask, 0)
    os.kill(os.getpid(), signal.SIGRTMIN)
    yield
    expect(struct.unpack_from("I", os.read(descriptor, 128))[0], signal.SIGRTMIN)


@kernel_object("events")
def inotify(directory: Path) -> Iterator[None]:
    watched = directory / "watched"
    watched.mkdir()
    descriptor = libc.inotify_init1(0)
    watch = libc.inotify_add_watch(descriptor, bytes(watched), 0x100)  # IN_CREATE
    yield
    (watched / "new").touch()
    found, mask = struct.unpack_from("iI", os.read(descriptor, 4096))
    expect((found, mask), (watch, 0x100))


# -- sockets of IP, inside the group -----------------------------------------------------------------------------------


def _tcp_pair(address: str) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        return client, server.accept()[0]


def _tcp_state(end: socket.socket) -> int:
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _tcp_loopback(address: str) -> Iterator[None]:
    client, server = _tcp_pair(address)
    client.sendall(b"question " * 1000)
    server.sendall(b"answer " * 1000)
    yield
    for end, wanted in ((server, b"question " * 1000), (client, b"answer " * 1000)):
        found = b""
        while len(found) < len(wanted):
            found += end.recv(1 << 16)
        expect(found == wanted, True, "what was queued")
    client.close()
    expect(server.recv(1), b"", "end of stream")


@kernel_object("ip_sockets")
def tcp_loopback_v4(_: Path) -> Iterator[None]:
    yield from _tcp_loopback("127.0.0.1")


@kernel_object("ip_sockets")
def tcp_loopback_v6(_: Path) -> Iterator[None]:
    yield from _tcp_loopback("::1")


@kernel_object("ip_sockets")
def tcp_half_closed(_: Path) -> Iterator[None]:
    client, server = _tcp_pair("127.0.0.1")
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    until(lambda: (_tcp_state(client), _tcp_state(server)) == (5, 8), "FIN_WAIT2 and CLOSE_WAIT")
    yield
    expect((_tcp_state(client), _tcp_state(server)), (5, 8), "states")
    expect(server.recv(64), b"last words")
    expect(server.recv(64), b"", "end of stream")
    server.sendall(b"answer")
    server.close()
    expect(client.recv(64), b"answer")
    expect(client.recv(64), b"", "end of stream")


@kernel_object("ip_sockets")
def tcp_options(_: Path) -> Iterator[None]:
    client, _server = _tcp_pair("127.0.0.1")
    values = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 13),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_PRIORITY, 3),
        (socket.SOL_SOCKET, socket.SO_MARK, 99),
    ]
    for level, option, value in values:
        client.setsockopt(level, option, value)
    yield
    expect([(level, option, client.getsockopt(level, option)) for level, option, _ in values], values)


@kernel_object("ip_sockets")
def tcp_bound(_: Path) -> Iterator[None]:
    """Bound and neither connected nor listening."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    name = bound.getsockname()
    yield
    expect(bound.getsockname(), name)
    bound.listen()
    socket.create_connection(name).close()


def _udp(address: str) -> Iterator[None]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, 0))
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.connect(server.getsockname())
    names = (server.getsockname(), client.getsockname(), client.getpeername())
    yield
    expect((server.getsockname(), client.getsockname(), client.getpeername()), names)
    client.send(b"datagram")
    expect(server.recvfrom(64), (b"datagram", client.getsockname()))


@kernel_object("ip_sockets")
def udp_v4(_: Path) -> Iterator[None]:
    yield from _udp("127.0.0.1")


@kernel_object("ip_sockets")
def udp_v6(_: Path) -> Iterator[None]:
    yield from _udp("::1")


@kernel_object("ip_sockets")
def raw_and_packet(_: Path) -> Iterator[None]:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    packet.bind(("lo", 0x88B5))
    yield
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b"seen", ("127.0.0.1", 9))
    # Of UDP it sees everything, that of other objects too.
    until(lambda: raw.recv(256)[28:] == b"seen", "the datagram is seen")
    packet.send(bytes(12) + b"\x88\xb5" + b"frame")
    expect(b"frame" in packet.recv(256), True, "the frame came")


# ------------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Make the objects, wait for the word, and check them."""
    port, directory, names = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    made = []
    for name in names:
        (directory / name).mkdir()
        made.append((name, OBJECTS[name](directory / name)))
        next(made[-1][1])
    server = socket.create_server(("", port))
    control = server.accept()[0]
    control.sendall(b"ready\n")
    control.recv(64)
    answer = ""
    for name, steps in made:
        try:
            next(steps, None)
        except BaseException:
            answer += f"{name}: {traceback.format_exc()}\n"
    control.sendall((answer or "ok").encode())
    control.shutdown(socket.SHUT_WR)
    control.recv(1)
    os._exit(0)


if __name__ == "__main__":
    main()
