"""Servers as people run them, moved in the middle of their work; what their clients get is checked on a third host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import random_name
from tests.vm.machines import CHECKOUT, PROGRAMS, Client, Machines
from tests.vm.moving import Group
from tests.vm.test_migrate import FEW

Run = Callable[..., Group]
Start = Callable[..., Client]

NGINX = """
daemon off; user root; worker_processes 1; pid {place}/pid; error_log stderr;
events {{ }}
http {{
    access_log off; client_body_temp_path {place}/a; proxy_temp_path {place}/b; fastcgi_temp_path {place}/c;
    uwsgi_temp_path {place}/d; scgi_temp_path {place}/e;
    server {{ listen 80; root {place}; sendfile on; }}
}}
"""
DOWNLOAD = 8 << 20


@pytest.fixture
def place(machines: Machines) -> Iterator[str]:
    """A directory that has the same name on both hosts: what a group has open there is the same on the other."""
    path = f"/var/tmp/{random_name()}"
    for host in (machines.a, machines.b):
        host.sh(f"mkdir -m 755 {path}")
    yield path
    for host in (machines.a, machines.b):
        host.sh(f"rm -rf {path}")


def both_ways(group: Group, client: Client) -> None:
    """There, and back unless the session is brief, and the client goes on each time."""
    client.progress()
    for _ in range(FEW):
        group.migrate()
        client.progress()


def test_migrate_nginx_download_in_progress_is_complete(
    run: Run, client: Start, machines: Machines, place: str
) -> None:
    config = NGINX.format(place=place)
    for host in (machines.a, machines.b):
        # As by rsync: the file of the other host has the same size and time.
        host.sh(
            f"python3 -I -S {PROGRAMS}/counters_file.py {DOWNLOAD} >{place}/file; touch -d @1700000000 {place}/file;"
            f" cat >{place}/nginx.conf <<'END'\n{config}\nEND\n touch -d @1700000000 {place}/nginx.conf"
        )
    group = run("nginx", "-c", f"{place}/nginx.conf", number=102)
    download = client("download_client.py", group.address, DOWNLOAD)
    both_ways(group, download)
    assert download.finish() == [f"all of {DOWNLOAD} bytes"]


def test_migrate_udp_server_answers_what_it_is_asked(run: Run, client: Start) -> None:
    group = run("python3", "-I", "-S", f"{CHECKOUT}/tests/criu/programs/udp_echo.py", "7000", number=103)
    asking = client("udp_client.py", group.address, 7000)
    both_ways(group, asking)
    asking.finish()


def test_migrate_postgres_under_pgbench_keeps_the_books(
    run: Run, client: Start, machines: Machines, place: str
) -> None:
    programs = machines.a.sh("echo /usr/lib/postgresql/*/bin").strip()
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    machines.a.sh(
        f"chown postgres: {place}; {' '.join(as_user)} {programs}/initdb -D {place}/data --auth=trust --no-sync"
        f" --no-instructions --wal-segsize=1 >/dev/null; echo host all all all trust >>{place}/data/pg_hba.conf",
        timeout=300,
    )
    settings = ("listen_addresses=*", "unix_socket_directories=", "fsync=off", "shared_buffers=16MB")
    words = [word for setting in settings for word in ("-c", setting)]
    group = run(*as_user, f"{programs}/postgres", "-D", f"{place}/data", *words, number=104)
    # There is no storage that both hosts have: the database travels along.
    group.options += ["--with-file", f"{place}/data", "--replace-files"]
    bench = client("pgbench_client.py", group.address, programs)
    both_ways(group, bench)
    assert bench.finish() == ["the tables agree"]
