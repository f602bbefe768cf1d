"""The verdicts of a check on real processes, each held against what the real CRIU does with them."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.check import check_dump
from ckpt.errors import NotFoundError
from ckpt.kernel.proc import read_group
from ckpt.model.criu_log import decisive_line
from ckpt.model.finding import Finding, Severity
from tests.conftest import require
from tests.criu.check_programs import ProgramFailedError, criu_dumps, running

REFUSED = {
    "mptcp": ("socket-mptcp", "held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)"),
    "vsock": ("socket-vsock", "held = socket.socket(40, socket.SOCK_STREAM)"),
    "xdp": ("socket-family", "held = socket.socket(44, socket.SOCK_RAW)"),
    "sctp": ("socket-sctp", "held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)"),
    "io_uring": ("io-uring", "params = ctypes.create_string_buffer(120)\nchecked(libc.syscall(425, 4, params))"),
    "userfaultfd": ("anon-inode", "checked(libc.syscall(323, 0))"),
    "landlock": (
        "anon-inode",
        "rights = ctypes.create_string_buffer(struct.pack('=Q', 1), 8)\nchecked(libc.syscall(444, rights, 8, 0))",
    ),
    "pidfd": ("pidfd-outside", "held = os.pidfd_open(os.getppid())"),
    "fuse": ("device-open", "held = os.open('/dev/fuse', os.O_RDWR)"),
    "message queue": (
        "file-internal",
        "checked(libc.mq_open(b'/ckpt-test', os.O_CREAT | os.O_RDWR, 0o600, None))\nlibc.mq_unlink(b'/ckpt-test')",
    ),
    "secret memory": ("file-internal", "checked(libc.syscall(447, 0))"),
    "socket name": (
        "socket-name-open",
        "held = socket.socket(socket.AF_UNIX)\nheld.bind(work + '/name')\nname = os.open(work + '/name', os.O_PATH)",
    ),
    "corked UDP": (
        "udp-corked",
        "held = socket.socket(type=socket.SOCK_DGRAM)\nheld.setsockopt(17, 1, 1)",
    ),
    "unread netlink": (
        "netlink-queue",
        (
            "held = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nheld.bind((0, 0))\n"
            "held.send(struct.pack('=IHHIIB3x', 20, 18, 0x301, 1, 0, 0))"
        ),
    ),
    "foreign namespace": (
        "namespace-outside",
        (
            "other = subprocess.Popen(['unshare', '--net', 'cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "other.stdin.write(b'x'); other.stdin.flush(); other.stdout.read(1)\n"
            "held = os.open(f'/proc/{other.pid}/ns/net', os.O_RDONLY)\nother.kill(); other.wait()"
        ),
    ),
    "tracer": (
        "process-traced",
        "child = os.fork()\nif child == 0:\n    time.sleep(1000)\nchecked(libc.ptrace(16, child, 0, 0))",
    ),
    "nested IPC namespace": (
        "namespace-nested",
        (
            "if os.fork() == 0:\n    checked(libc.unshare(0x08000000))\n    ready()\n"
            "while not os.path.exists(work + '/ready'):\n    time.sleep(0.02)"
        ),
    ),
    "shared System V memory": (
        "sysv-shared",
        (
            "held = checked(libc.shmget(0, 4096, 0o1600))\nlibc.shmat.restype = ctypes.c_void_p\n"
            "libc.shmat(held, None, 0)\nlibc.shmctl(held, 0, None)"
        ),
    ),
    "dead main thread": (
        "process-leader-ended",
        "threading.Thread(target=ready).start()\nlibc.pthread_exit(None)",
    ),
}
"""Name: the code that must block, and a program that holds it. CRIU refuses each of these by itself."""

BROKEN_LATER = {
    "TUN that ends with its program": (
        "tun-not-persistent",
        "held = os.open('/dev/net/tun', os.O_RDWR)\nattach(held, b'tun7')",
    ),
    "persistent TUN": (
        "tun-open",
        ("held = os.open('/dev/net/tun', os.O_RDWR)\nattach(held, b'tun7')\nfcntl.ioctl(held, 0x400454CB, 1)"),
    ),
    "socket from another namespace": (
        "socket-netns",
        "held = socket.socket()\nchecked(libc.unshare(0x40000000))",
    ),
    "thread in another namespace": (
        "thread-namespace",
        (
            "gone = threading.Event()\n"
            "def away():\n    checked(libc.unshare(0x40000000))\n    gone.set()\n    ready()\n"
            "threading.Thread(target=away).start()\ngone.wait()"
        ),
    ),
}
"""CRIU dumps these, and then cannot restore them, or restores something else."""

TAKEN = {
    "nothing": "",
    "unattached TUN": "held = os.open('/dev/net/tun', os.O_RDWR)",
    "anonymous inodes": (
        "import select\nheld = [select.epoll(), libc.eventfd(0, 0), libc.timerfd_create(1, 0), libc.inotify_init()]\n"
        "held.append(os.pidfd_open(os.getpid()))"
    ),
    "memfd": "held = os.memfd_create('x')\nos.write(held, b'abc')",
    "harmless devices": "held = [os.open('/dev/' + name, os.O_RDONLY) for name in ('null', 'zero', 'urandom', 'full')]",
    "a terminal of its own": "held = os.openpty()",
    "a terminal whose master is closed": "held = os.openpty()\nos.close(held[0])",
    "a unix pair": "held = socket.socketpair()",
    "a unix connection waiting to be accepted": (
        "one = socket.socket(socket.AF_UNIX)\none.bind(work + '/name')\none.listen()\n"
        "other = socket.socket(socket.AF_UNIX)\nother.connect(work + '/name')"
    ),
    "a socket on its way in a message": (
        "one, other = socket.socketpair()\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [other.fileno()])\n"
        "other.close()"
    ),
    "a deleted file": "held = open(work + '/gone', 'w')\nheld.write('x')\nheld.flush()\nos.unlink(work + '/gone')",
    "a mapped file that was deleted": (
        "file = open(work + '/gone', 'w+b')\nfile.write(bytes(8192))\nfile.flush()\n"
        "held = mmap.mmap(file.fileno(), 8192)\nfile.close()\nos.unlink(work + '/gone')"
    ),
    "a locked file": "held = open(work + '/locked', 'w')\nfcntl.flock(held, fcntl.LOCK_EX)",
    "a FIFO": "os.mkfifo(work + '/fifo')\nheld = os.open(work + '/fifo', os.O_RDWR)",
    "a packet socket": "held = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300)",
    "a raw socket": "held = socket.socket(type=socket.SOCK_RAW, proto=1)",
    "a child that has ended": "if os.fork() == 0:\n    os._exit(0)\ntime.sleep(0.1)",
    "a stopped child": "child = os.fork()\nif child == 0:\n    os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(0.1)",
    "a session of a child": "if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\ntime.sleep(0.1)",
}


def findings(pid: int, severity: Severity) -> list[Finding]:
    return [finding for finding in check_dump(read_group(pid)) if finding.severity is severity]


def blocked(pid: int) -> set[str]:
    return {finding.code for finding in findings(pid, Severity.BLOCK)}


@pytest.mark.parametrize(("code", "program"), REFUSED.values(), ids=REFUSED)
def test_check_dump_blocks_what_criu_refuses(code: str, program: str, tmp_path: Path) -> None:
    try:
        with running(program, tmp_path) as pid:
            assert blocked(pid) == {code}
            assert not criu_dumps(pid, tmp_path)
            assert decisive_line((tmp_path / "images/log").read_text()) is not None
    except ProgramFailedError as error:
        require(code == "socket-sctp", f"this machine cannot make it: {error}")
        pytest.skip("this kernel has no SCTP")


@pytest.mark.parametrize(("code", "program"), BROKEN_LATER.values(), ids=BROKEN_LATER)
def test_check_dump_blocks_what_criu_would_not_bring_back(code: str, program: str, tmp_path: Path) -> None:
    with running(program, tmp_path) as pid:
        assert blocked(pid) == {code}


@pytest.mark.parametrize("program", TAKEN.values(), ids=TAKEN)
def test_check_dump_lets_pass_what_criu_dumps(program: str, tmp_path: Path) -> None:
    with running(program, tmp_path) as pid:
        assert check_dump(read_group(pid)) == ()
        assert criu_dumps(pid, tmp_path)


def test_check_dump_first_shared_memory_since_boot_blocks(tmp_path: Path) -> None:
    # Its id is 0, and so is the inode that is mapped.
    code, program = REFUSED["shared System V memory"]
    with running(program, tmp_path, unshare=("--net", "--ipc")) as pid:
        assert [file.inode for file in read_group(pid).processes[0].maps if file.path.startswith("/SYSV")] == [0]
        inside = replace(read_group(pid), ipcns_is_hosts=True)
        assert [finding.code for finding in check_dump(inside)] == [code]


def test_check_dump_session_of_another_warns(tmp_path: Path) -> None:
    with running("", tmp_path, unshare=("--fork", "unshare", "--net")) as leader:
        (pid,) = (process.pid for process in read_group(leader).processes if process.pid != leader)
        assert [one.code for one in findings(pid, Severity.WARN)] == ["session-shared"]
        assert blocked(pid) == set()


def test_check_dump_session_with_its_leader_outside_blocks(tmp_path: Path) -> None:
    with running("", tmp_path, session=False) as pid:
        assert os.getsid(0) == 0, "the lab's session is from outside"
        assert blocked(pid) == {"session-outside"}
        assert not criu_dumps(pid, tmp_path)


def test_check_dump_session_outside_of_the_pid_namespace_blocks(tmp_path: Path) -> None:
    with running("", tmp_path, unshare=("--net", "--pid", "--fork")) as pid:
        (init,) = (process.pid for process in read_group(pid).processes if process.ppid == pid)
        assert "session-outside" in blocked(init)
        assert not criu_dumps(init, tmp_path)


def test_check_dump_vforking_parent_blocks(tmp_path: Path) -> None:
    # clone(CLONE_VFORK | SIGCHLD): the parent sleeps uninterruptibly until the child ends; the child says ready
    with running("if libc.syscall(56, 0x4011, 0, 0, 0, 0) == 0:\n    ready()", tmp_path) as pid:
        assert blocked(pid) == {"process-state"}


def test_check_dump_deleted_program_warns_and_is_taken(tmp_path: Path) -> None:
    program = (
        "shutil.copy('/bin/sleep', work + '/program')\nchild = subprocess.Popen([work + '/program', '1000'])\n"
        "while os.readlink(f'/proc/{child.pid}/exe') != work + '/program':\n    time.sleep(0.02)\n"
        "os.unlink(work + '/program')"
    )
    with running(program, tmp_path) as pid:
        assert [one.code for one in findings(pid, Severity.WARN)] == ["exe-deleted"]
        assert blocked(pid) == set()
        assert criu_dumps(pid, tmp_path)


def test_check_dump_pipe_to_a_process_outside_warns(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        with running("", tmp_path, output=writer) as pid:
            (finding,) = findings(pid, Severity.WARN)
            assert finding.code == "pipe-outside"
            assert finding.subject.endswith(", fd 1")
            assert f"PID {os.getpid()} " in finding.reason
            assert blocked(pid) == set()
            assert criu_dumps(pid, tmp_path)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET"])
def test_check_dump_unix_connection_to_a_process_outside_blocks(kind: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as listener:
        listener.bind(str(tmp_path / "name"))
        listener.listen()
        program = f"held = socket.socket(socket.AF_UNIX, socket.{kind})\nheld.connect(work + '/name')"
        with running(program, tmp_path) as pid:
            # first it waits to be accepted
            assert blocked(pid) == {"unix-peer-outside"}
            accepted, _ = listener.accept()
            with accepted:
                (finding,) = findings(pid, Severity.BLOCK)
                assert finding.code == "unix-peer-outside"
                assert f"PID {os.getpid()} " in finding.reason
                assert not criu_dumps(pid, tmp_path)


# From a network namespace of its own CRIU alone does not dump it; ckpt does (tests/criu/test_datagrams.py).
@pytest.mark.parametrize(("unshare", "criu_alone"), [(("--net",), False), ((), True)], ids=["netns", "none"])
def test_check_dump_datagrams_to_a_name_outside(unshare: tuple[str, ...], criu_alone: bool, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        program = "held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\nheld.connect(work + '/log')"
        with running(program, tmp_path, unshare=unshare) as pid:
            (finding,) = findings(pid, Severity.WARN)
            assert finding.code == "unix-peer-outside"
            assert str(tmp_path / "log") in finding.reason
            assert criu_dumps(pid, tmp_path) == criu_alone


def test_check_dump_terminal_of_a_process_outside_blocks(tmp_path: Path) -> None:
    master, slave = os.openpty()
    try:
        program = f"held = os.open({os.ttyname(slave)!r}, os.O_RDWR | os.O_NOCTTY)"
        with running(program, tmp_path) as pid:
            assert blocked(pid) == {"terminal-outside"}
            assert not criu_dumps(pid, tmp_path)
    finally:
        os.close(master)
        os.close(slave)


def test_check_dump_socket_held_outside_too_blocks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"held = socket.socket(fileno=os.dup({server.fileno()}))"
        with running(program, tmp_path, unshare=(), pass_fds=(server.fileno(),)) as pid:
            assert "socket-shared" in blocked(pid)


def test_check_dump_namespace_shared_with_others_names_them(tmp_path: Path) -> None:
    with running("", tmp_path) as pid:
        entered = ["nsenter", f"--net=/proc/{pid}/ns/net", "--", "sleep", "1000"]
        with subprocess.Popen(entered) as other:
            try:
                while os.stat(f"/proc/{other.pid}/ns/net").st_ino != os.stat(f"/proc/{pid}/ns/net").st_ino:
                    assert other.poll() is None
                (finding,) = findings(pid, Severity.BLOCK)
                assert finding.code == "netns-shared"
                assert f"PID {other.pid} " in finding.reason
            finally:
                other.kill()


def test_check_dump_of_an_ancestor_of_itself_blocks() -> None:
    assert blocked(os.getpid()) == {"process-self"}
    assert blocked(os.getppid()) == {"process-self"}


def test_read_group_of_no_process_is_not_found() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(NotFoundError) as caught:
        read_group(gone.pid)
    assert caught.value.code == "process-not-found"
