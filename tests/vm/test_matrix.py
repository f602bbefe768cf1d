"""Groups that move between hosts of different kernels and CRIUs: what can go on does, the rest is refused.

`scripts/test --vm-matrix` makes one lab for each pair of hosts, and a table of what was found (docs/versions.md). The
hosts that CKPT_VM_NEWEST names get the CRIU of this machine's /opt/ckpt/criu, which brings its own libc.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt.errors import RefusedError, UnsupportedError
from tests.conftest import random_name, require
from tests.vm.machines import Client, Host, Machines
from tests.vm.moving import LIMIT, Group
from tests.vm.test_migrate import REDIS, STREAM

Run = Callable[..., Group]
Start = Callable[..., Client]

FOUND = os.environ.get("CKPT_VM_MATRIX", "")
NEWEST = os.environ.get("CKPT_VM_NEWEST", "").split()
PRIVATE_CRIU = Path("/opt/ckpt/criu")

pytestmark = pytest.mark.skipif(not FOUND, reason="only in the matrix: scripts/test --vm-matrix")

NOTHING_TOUCHED = (RefusedError.status, UnsupportedError.status)


@pytest.fixture(scope="module")
def versions(machines: Machines) -> dict[str, str]:
    """What each host runs."""
    for host in machines:
        if host.name in NEWEST:
            require((PRIVATE_CRIU / "criu").exists(), f"there is no newer CRIU in {PRIVATE_CRIU}: scripts/install-criu")
            bring = subprocess.Popen(["tar", "-C", "/", "-c", str(PRIVATE_CRIU)[1:]], stdout=subprocess.PIPE)
            subprocess.run(host.argv("tar -C / -x"), stdin=bring.stdout, check=True, timeout=300)
            assert bring.wait() == 0
    return {host.name: described(host) for host in machines}


def described(host: Host) -> str:
    """``Debian 12, Linux 6.1.0, CRIU 3.17.1``, and what of the processor it lacks that this machine has."""
    criu = host.sh("PATH=/opt/ckpt/criu:$PATH criu --version | sed -n 's/^Version: //p'").strip()
    debian = host.sh(". /etc/os-release; echo $VERSION_ID").strip()
    kernel = host.sh("uname -r").partition("-")[0].strip()
    less = "" if "avx2" in host.sh("grep -m 1 ^flags /proc/cpuinfo") else ", no AVX2"
    return f"Debian {debian}, Linux {kernel}, CRIU {criu}{less}"


@pytest.fixture(scope="module")
def same_program(machines: Machines) -> Iterator[str]:
    """A program that is byte for byte the same on both hosts and needs no library of theirs, and such a tini."""
    place = f"/var/tmp/{random_name()}"
    # busybox under any other name is another program.
    same = {"/bin/busybox": f"{place}/busybox", "/usr/bin/tini-static": "/usr/local/bin/tini"}
    for origin, path in same.items():
        found = subprocess.run(machines.b.argv(f"cat {origin}"), capture_output=True, check=True, timeout=60).stdout
        for host in (machines.a, machines.b):
            write = f"mkdir -p {place}; cat >{path}; chmod 755 {path}"
            subprocess.run(host.argv(write), input=found, check=True, timeout=60)
    yield f"{place}/busybox"
    for host in (machines.a, machines.b):
        host.sh(f"rm -r {place} /usr/local/bin/tini")


@pytest.mark.parametrize("kind", ["same", "netns", "ipset"])
@pytest.mark.parametrize("direction", ["there", "back"])
def test_migrate_between_versions_goes_on_or_is_refused(
    run: Run,
    client: Start,
    machines: Machines,
    versions: dict[str, str],
    same_program: str,
    direction: str,
    kind: str,
) -> None:
    source, target = (machines.a, machines.b) if direction == "there" else (machines.b, machines.a)
    if direction == "back" and versions["a"] == versions["b"]:
        pytest.skip("both are the same")
    echo = [same_program, "nc", "-ll", "-p", "7000", "-e", same_program, "cat"]
    command, program, port = {
        "same": (echo, "echo_client.py", 7000),
        "netns": (REDIS, "redis_client.py", 6379),
        "ipset": (STREAM, "stream_client.py", 7000),
    }[kind]
    on = Machines(source, target, machines.c)
    group = run(*command, on=on, isolation="ipset" if kind == "ipset" else "netns", number=120)
    working = client(program, group.address, port)
    working.progress()
    moved = source.ckpt("migrate", group.name, "--host", target.name, "--downtime-limit", LIMIT, timeout=300)
    note = {
        "source": versions[source.name],
        "target": versions[target.name],
        "kind": kind,
        "status": moved.status,
        "error": json.loads(moved.err)["error"] if moved.status else None,
    }
    with Path(FOUND).open("a") as found:
        found.write(json.dumps(note) + "\n")
    # Whatever it says: it runs, with its connection, on the one or on the other.
    working.progress()
    runs = [host.name for host in (source, target) if group.name in host.groups()]
    if moved.status in NOTHING_TOUCHED:
        assert runs == [source.name]
    else:
        assert (moved.status, runs) == (0, [target.name]), moved.err
    working.finish()
