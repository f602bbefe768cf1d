"""Ways out of an IP-set context: each is closed, refused, or leads nowhere."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt import registry, run
from ckpt.errors import RefusedError
from ckpt.kernel import bpf_calls, bpf_object, cgroup2, context, syscalls
from ckpt.kernel.context_bounds import DROPPED
from ckpt.model.context import Context, Limits
from ckpt.model.groupspec import GroupSpec
from ckpt.model.process import Isolation
from ckpt.stop import stop_group
from tests.conftest import random_name
from tests.net import context_lab, spaces
from tests.net.context_lab import PEER, Lab, ip

PORT = 8080
NEAR = ip("near", 4, PEER)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    with context_lab.lab(tmp_path / "state") as found:
        yield found


@pytest.fixture
def one(place: Lab) -> Context:
    return place.context(ip("first", 4), ip("second", 4), ip("first", 6))


def test_sources_that_a_raw_socket_writes_are_dropped_unless_they_are_of_the_set(place: Lab, one: Context) -> None:
    """A context's own processes lack CAP_NET_RAW; one that was brought in with it is held by the last line."""
    agent, peer = place.inside(one), place.at_peer()
    peer.do(f"s = socket.socket(type=socket.SOCK_DGRAM); s.bind(({NEAR!r}, {PORT}))")
    agent.do("import struct; r = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)")
    agent.do(
        "def packet(source, word):\n"
        f"    udp = struct.pack('!4H', 7, {PORT}, 8 + len(word), 0) + word\n"
        "    head = struct.pack('!BBHHHBBH', 69, 0, 20 + len(udp), 0, 0, 64, 17, 0)\n"
        f"    return head + socket.inet_aton(source) + socket.inet_aton({NEAR!r}) + udp\n"
    )
    assert agent.fails(f"r.sendto(packet({ip('free', 4)!r}, b'forged'), ({NEAR!r}, 0))") == "EPERM"
    agent.do(f"r.sendto(packet({ip('second', 4)!r}, b'own'), ({NEAR!r}, 0))")
    assert peer.do("s.recvfrom(99)") == ["own", [ip("second", 4), 7]]


def test_raw_socket_sees_only_what_is_for_the_set(place: Lab, one: Context) -> None:
    agent, peer = place.inside(one), place.at_peer()
    agent.do("r = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)")
    for address in (ip("free", 4), ip("first", 4)):
        peer.do(f"c = socket.socket(type=socket.SOCK_DGRAM); c.sendto(b'x', ({address!r}, 9))")
    data = agent.do("socket.inet_ntoa(r.recv(99)[16:20])")
    assert data == ip("first", 4)


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [("AF_INET", "SOCK_STREAM", 262), ("AF_INET6", "SOCK_STREAM", 262), ("AF_INET", "SOCK_STREAM", 132)],
)
def test_protocols_without_hooks_cannot_be_had(place: Lab, one: Context, family: str, kind: str, protocol: int) -> None:
    agent, host = place.inside(one), place.unconfined()
    code = f"socket.socket(socket.{family}, socket.{kind}, {protocol})"
    if host.fails(code):
        pytest.skip(f"this kernel has no protocol {protocol}")
    assert agent.fails(code) == "EPROTONOSUPPORT"


def test_namespace_of_its_own_has_no_sockets(place: Lab, one: Context) -> None:
    agent = place.inside(one)
    agent.do("import ctypes; libc = ctypes.CDLL(None)")
    assert agent.do("libc.unshare(0x40000000)") == 0
    for family in ("AF_INET", "AF_INET6"):
        assert agent.fails(f"socket.socket(socket.{family})") == "EPERM"


def test_listen_without_bind_is_reached_on_the_set_alone(place: Lab, one: Context) -> None:
    agent, peer = place.inside(one), place.at_peer()
    agent.do("s = socket.socket(); s.listen()")
    port = agent.do("s.getsockname()[1]")
    peer.do("socket.setdefaulttimeout(1)")
    assert peer.fails(f"socket.create_connection(({ip('free', 4)!r}, {port}))") == "ETIMEDOUT"
    peer.do(f"c = socket.create_connection(({ip('second', 4)!r}, {port}))")
    assert agent.do("s.accept()[0].getsockname()[0]") == ip("second", 4)


def test_datagram_socket_that_never_was_bound_hears_only_the_set(place: Lab, one: Context) -> None:
    agent, peer = place.inside(one), place.at_peer()
    agent.do(f"u = socket.socket(type=socket.SOCK_DGRAM); u.sendto(b'x', ({NEAR!r}, 9))")
    port = agent.do("u.getsockname()[1]")
    peer.do("c = socket.socket(type=socket.SOCK_DGRAM)")
    for word, address in ((b"stranger", ip("free", 4)), (b"own", ip("first", 4))):
        peer.do(f"c.sendto({word!r}, ({address!r}, {port}))")
    assert agent.do("u.recv(99)") == "own"


def test_processes_of_a_cgroup_below_are_confined(place: Lab, one: Context) -> None:
    below = Path(one.cgroup, "below")
    below.mkdir()
    agent = place.inside_of(below)
    agent.do("s = socket.socket()")
    assert agent.fails(f"s.bind(({ip('free', 4)!r}, {PORT}))") == "EADDRNOTAVAIL"
    agent.do(f"s.bind(('', {PORT})); s.listen()")
    assert agent.do("s.getsockname()[0]") == "0.0.0.0"
    peer = place.at_peer()
    peer.do(f"socket.create_connection(({ip('second', 4)!r}, {PORT}))")


def test_programs_of_a_cgroup_below_do_not_replace_the_contexts(place: Lab, one: Context) -> None:
    """Even for who may attach programs."""
    below = Path(one.cgroup, "below")
    below.mkdir()
    let_all = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    kind = bpf_object.KINDS["cgroup/bind4"]
    program = bpf_calls.prog_load("let_all", kind.program, kind.attach, let_all, "GPL")
    cgroup = os.open(below, os.O_RDONLY | os.O_DIRECTORY)
    try:
        bpf_calls.prog_attach(cgroup, program, kind.attach, bpf_calls.ALLOW_MULTI)
    finally:
        os.close(cgroup)
        os.close(program)
    agent = place.inside_of(below)
    agent.do("s = socket.socket()")
    assert agent.fails(f"s.bind(({ip('free', 4)!r}, {PORT}))") == "EADDRNOTAVAIL"


@contextlib.contextmanager
def passing() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        yield one, other


def test_listener_that_was_passed_out_stays_confined_and_keeps_its_books(place: Lab, one: Context) -> None:
    peer = place.at_peer()
    code = (
        f"open({str(Path(one.cgroup) / 'cgroup.procs')!r}, 'w').write('0')\n"
        "import array, socket, sys\n"
        "channel = socket.socket(fileno=int(sys.argv[1]))\n"
        f"s = socket.socket(); s.bind(('', {PORT})); s.listen()\n"
        "u = socket.socket(type=socket.SOCK_DGRAM)\n"
        "both = array.array('i', [s.fileno(), u.fileno()])\n"
        "channel.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, both)])\n"
    )
    with passing() as (near, far):
        subprocess.run([sys.executable, "-c", code, str(far.fileno())], pass_fds=[far.fileno()], check=True)
        _, ancillary, _, _ = near.recvmsg(9, 200)
    descriptors = array.array("i")
    descriptors.frombytes(ancillary[0][2])
    listener, other = (socket.socket(fileno=fd) for fd in descriptors)
    with listener, other:
        assert place.books() != []
        with pytest.raises(OSError, match="Cannot assign requested address"):
            other.bind((ip("free", 4), PORT))
        listener.settimeout(5)
        peer.do(f"c = socket.create_connection(({ip('second', 4)!r}, {PORT}))")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockname()[0] == ip("second", 4)
    assert place.books() == []


def test_socket_outlives_its_context_and_stays_confined(place: Lab) -> None:
    made = place.context(ip("free", 4))
    agent = place.inside(made)
    agent.do("s = socket.socket()")
    descriptor = os.pidfd_open(agent.pid)
    duplicate = socket.socket(fileno=syscalls.pidfd_getfd(descriptor, agent.do("s.fileno()")))
    os.close(descriptor)
    agent.end()
    context.remove(made.name, Path(made.cgroup), place.directory)
    with duplicate, pytest.raises(OSError, match="Cannot assign requested address"):
        duplicate.bind((ip("first", 4), PORT))


def inside_run(script: str, **changes: Any) -> str:
    """What a script prints as the command of a real group."""
    spec = GroupSpec(
        name=random_name("g"),
        command=(sys.executable, "-c", script),
        environment=dict(os.environ),
        isolation=Isolation.IPSET,
        addresses=(ip("first", 4),),
        root_may_leave=True,
    )
    outcome = run.run_group(replace(spec, **changes))
    assert outcome.entry.log is not None
    return Path(outcome.entry.log).read_text()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CKPT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CKPT_LOG_DIR", str(tmp_path / "log"))
    yield
    for entry in registry.entries():
        stop_group(entry.name, timeout=0)


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
        "socket.socket().setsockopt(socket.IPPROTO_IP, 19, 1)",  # IP_TRANSPARENT
        "open('/proc/1/ns/net') and done(libc.setns(os.open('/proc/1/ns/net', os.O_RDONLY), 0))",
        "done(libc.unshare(0x40000000))",  # CLONE_NEWNET
        "done(libc.mount(b'none', b'/mnt', b'tmpfs', 0, None))",
        "done(libc.syscall(321, 5, ctypes.create_string_buffer(128), 128))",  # BPF_PROG_LOAD
        "os.listdir('/proc/1/root/')",
        "os.mknod('/dev/ckpt-test', 0o600 | 0o020000, os.makedev(1, 1))",
    ],
)
def test_root_inside_a_group_may_not(place: Lab, state: None, attempt: str) -> None:
    script = (
        "import ctypes, os, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def done(result):\n"
        "    if result < 0:\n"
        "        raise OSError(ctypes.get_errno(), 'refused')\n"
        "try:\n"
        f"    {attempt}\n"
        "except PermissionError as error:\n"
        "    print('refused')\n"
        "else:\n"
        "    print('done')\n"
    )
    assert inside_run(script) == "refused\n"


def test_capabilities_do_not_come_back_by_executing(place: Lab, state: None) -> None:
    text = inside_run("import os; os.execv('/bin/sh', ['sh', '-c', 'grep ^Cap /proc/self/status'])")
    values = {line.split()[0]: int(line.split()[1], 16) for line in text.splitlines()}
    for name in ("CapPrm:", "CapEff:", "CapBnd:"):
        assert not any(values[name] >> bit & 1 for bit in DROPPED.values())


def test_group_sees_its_cgroup_as_the_root(place: Lab, state: None) -> None:
    assert "0::/\n" in inside_run("print(open('/proc/self/cgroup').read())")


LEAVING = context_lab.LEAVING.replace("ADDRESS", ip("free", 4))


def test_root_stays_where_cgroup_namespaces_are_boundaries(place: Lab, state: None) -> None:
    with context_lab.boundaries(on=True):
        assert inside_run(LEAVING, root_may_leave=False).splitlines() == context_lab.STAYED


def test_what_root_could_leave_is_refused_unless_it_may(place: Lab, state: None) -> None:
    with context_lab.boundaries(on=False):
        with pytest.raises(RefusedError) as caught:
            inside_run(LEAVING, root_may_leave=False)
        assert (caught.value.code, place.books(), context.has_floor()) == ("context-delegation", [], False)
        assert "without nsdelegate" in str(caught.value.details)
        assert inside_run(LEAVING).splitlines() == ["left", "bound"]


def test_remedy_that_a_refusal_names_keeps_root_inside(place: Lab, state: None) -> None:
    with context_lab.boundaries(on=False):
        with pytest.raises(RefusedError) as caught:
            inside_run(LEAVING, root_may_leave=False)
        assert caught.value.hint is not None
        subprocess.run(caught.value.hint.partition(";")[0].split(), check=True)
        assert inside_run(LEAVING, root_may_leave=False).splitlines() == context_lab.STAYED


@pytest.mark.parametrize(
    "attempt",
    [
        "(root / 'cgroup.procs').write_text('0')",
        "(root / 'cgroup.threads').write_text('0')",
        "clone_into(root)",
        "os.makedirs(here / 'below', exist_ok=True) or clone_into(root)",
        "libc.unshare(0x12000000) or (root / 'cgroup.procs').write_text('0')",  # CLONE_NEWUSER, CLONE_NEWCGROUP
        "libc.unshare(0x12020000) or mounted()",  # and CLONE_NEWNS
        "os.setresuid(1, 1, 0) or os.setresuid(0, 0, 0) or (root / 'cgroup.procs').write_text('0')",
        "os.kill(1, 9)",
    ],
)
def test_no_way_out_for_root_where_cgroup_namespaces_are_boundaries(place: Lab, state: None, attempt: str) -> None:
    script = (
        "import ctypes, os, pathlib, struct, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"root = pathlib.Path({str(cgroup2.root())!r})\n"
        "(name,) = (one for one in root.rglob('ckpt-*') if one.name.endswith(os.uname().nodename))\n"
        "here = root / name\n"
        "def clone_into(cgroup):\n"
        "    into = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)\n"
        "    arguments = struct.pack('=11Q', 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, into)\n"
        "    if libc.syscall(435, arguments, len(arguments)) > 0:\n"
        "        os.wait()\n"
        "        os._exit(0)\n"
        "def mounted():\n"
        "    os.makedirs('/tmp', exist_ok=True)\n"
        "    libc.mount(b'cgroup2', b'/tmp', b'cgroup2', 0, None)\n"
        "    pathlib.Path('/tmp/cgroup.procs').write_text('0')\n"
        "try:\n"
        f"    {attempt}\n"
        "except (OSError, PermissionError):\n"
        "    pass\n"
        "socket = __import__('socket').socket()\n"
        "try:\n"
        f"    socket.bind(({ip('free', 4)!r}, 8080))\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
        "else:\n"
        "    print('bound')\n"
    )
    with context_lab.boundaries(on=True):
        assert inside_run(script, root_may_leave=False) == "Cannot assign requested address\n"


def test_limit_of_tasks_that_root_could_lift_is_refused_unless_it_may(place: Lab, state: None) -> None:
    limits = Limits(tasks=5)
    with context_lab.boundaries(on=True):
        if " - cgroup cgroup rw,pids" not in Path("/proc/self/mountinfo").read_text():
            assert inside_run("print('run')", root_may_leave=False, limits=limits) == "run\n"
            return
        with pytest.raises(RefusedError) as caught:
            inside_run("print('run')", root_may_leave=False, limits=limits)
        assert caught.value.code == "context-delegation"
        assert "limit of its tasks" in str(caught.value.details)
        assert inside_run("print('run')", limits=limits) == "run\n"


def test_memory_is_not_locked_above_its_limit(place: Lab, state: None) -> None:
    script = (
        "import ctypes, mmap\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "space = mmap.mmap(-1, 1 << 20)\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(space))\n"
        "for size in (1 << 16, 1 << 20):\n"
        "    print(libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(size)))\n"
    )
    assert inside_run(script, limits=Limits(memlock=1 << 16)) == "0\n-1\n"


def test_sysctl_that_makes_sockets_v6only_is_followed(place: Lab) -> None:
    spaces.shell("sysctl -qw net.ipv6.bindv6only=1", place.host)
    made = place.context(ip("first", 4), ip("first", 6))
    agent, other, peer = place.inside(made), place.inside(made), place.at_peer()
    agent.do(f"s = socket.socket(socket.AF_INET6); s.bind(('::', {PORT})); s.listen()")
    other.do(f"s = socket.socket(); s.bind(('', {PORT})); s.listen()")
    for address, server in ((ip("first", 6), agent), (ip("first", 4), other)):
        peer.do(f"c = socket.create_connection(({address!r}, {PORT}))")
        assert server.do("s.accept()[0].getsockname()[0]") == address


def test_host_without_ipv6_has_contexts_without_it(place: Lab) -> None:
    spaces.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", place.host)
    made = place.context(ip("first", 4), ip("second", 4))
    agent, client, peer = place.inside(made), place.inside(made), place.at_peer()
    agent.do(f"s = socket.socket(socket.AF_INET6); s.bind(('::', {PORT})); s.listen()")
    for who, address in ((peer, ip("second", 4)), (client, "127.0.0.1")):
        who.do(f"c = socket.create_connection(({address!r}, {PORT}))")
        assert agent.do("s.accept()[0].getsockname()[0]") == f"::ffff:{address}"
    assert client.fails(f"socket.create_connection(('::1', {PORT}))") != ""


def test_address_that_leaves_the_host_fails_cleanly_and_works_again_when_it_is_back(place: Lab) -> None:
    made = place.context(ip("first", 4), ip("second", 4))
    agent, peer = place.inside(made), place.at_peer()
    spaces.shell(f"ip addr del {context_lab.HOST['second'][0]} dev eth0", place.host)
    agent.do("s = socket.socket()")
    assert agent.fails(f"s.bind(({ip('second', 4)!r}, {PORT}))") == "EADDRNOTAVAIL"
    assert place.books() == []
    agent.do(f"s.bind(('', {PORT})); s.listen()")
    spaces.shell(f"ip addr add {context_lab.HOST['second'][0]} dev eth0", place.host)
    peer.do(f"c = socket.create_connection(({ip('second', 4)!r}, {PORT}))")
    assert agent.do("s.accept()[0].getsockname()[0]") == ip("second", 4)
