"""Groups that move between hosts, as a user moves them, with a client behind a router that must not notice."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from ckpt.kernel import netns
from tests.conftest import random_name
from tests.criu.capture import Capture, capturing
from tests.criu.fault_lab import patient
from tests.criu.stream import Stream
from tests.hosts.machines import BRIDGE, World
from tests.hosts.moving import LIMIT, Moving, connect, run_server


def owners(capture: Capture, moving: Moving) -> list[str]:
    """The ports from which packets of the group's address came, each once as often as it changed."""
    found: list[str] = []
    for packet in capture.packets:
        host = packet.ifname in (moving.source.port, moving.target.port) and not packet.leaves
        if host and packet.source == moving.address and found[-1:] != [packet.ifname]:
            found.append(packet.ifname)
    return found


def mac_of(moving: Moving) -> str:
    """The group's, where it runs."""
    found = moving.source.run("ckpt", "exec", moving.name, "--", "ip", "-j", "link", "show", "eth0")
    return str(found.json[0]["address"])


def test_migrate_streams_both_ways_lose_nothing(moving: Moving) -> None:
    mac = mac_of(moving)
    with capturing() as capture:
        moving.stream.progress()
        done = moving.move("--downtime-limit", LIMIT)
        assert done.status == 0, done.err
        moving.stream.progress()
    assert (done.json["name"], done.json["connections"], done.json["resumed"]) == (moving.name, 1, False)
    assert moving.copies() == [moving.target]
    assert capture.betrayals(moving.address) == []
    # A frame passes a port of either host once on its way to or from the router.
    ports = {one.ifname for one in capture.packets if one.source == moving.address}
    assert {moving.source.port, moving.target.port} <= ports
    moving.moved()
    assert moving.left_behind() == []
    assert mac_of(moving) == mac


def test_migrate_under_another_mac_keeps_the_connection(moving: Moving) -> None:
    new = "02:00:00:00:88:10"
    words = ["--map-mac", f"{mac_of(moving)}={new}"]
    dry = moving.move("--dry-run", *words)
    assert ("address-held", moving.address) in {(one["code"], one["subject"]) for one in dry.json["findings"]}
    with capturing() as capture:
        done = moving.move("--downtime-limit", LIMIT, *words)
        assert done.status == 0, done.err
        moving.stream.progress()
    assert capture.betrayals(moving.address) == []
    moving.moved()
    assert mac_of(moving) == new


def test_migrate_the_old_port_is_silent_once_the_new_one_speaks(moving: Moving) -> None:
    with capturing() as capture:
        assert moving.move("--downtime-limit", LIMIT).status == 0
        moving.stream.progress()
    seen = owners(capture, moving)
    moving.moved()
    assert len(seen) == len(set(seen)), seen


def test_migrate_needs_no_disk_of_the_target(moving: Moving) -> None:
    # For its records, and not for the group's memory.
    assert moving.target.run("mount", "-t", "tmpfs", "-o", "size=256k", "none", "/var/lib/ckpt").status == 0
    try:
        done = moving.move("--downtime-limit", LIMIT)
    finally:
        assert moving.target.run("umount", "/var/lib/ckpt").status == 0
    assert done.status == 0, done.err
    moving.stream.progress()
    moving.moved()
    assert moving.left_behind() == []


def test_migrate_dry_run_touches_nothing(moving: Moving) -> None:
    done = moving.move("--dry-run")
    assert done.status == 0, done.err
    assert done.json["dry_run"]
    assert moving.copies() == [moving.source]
    assert moving.left_behind() == []
    moving.stream.progress(50)


def test_migrate_to_a_host_that_has_the_name_is_refused(moving: Moving) -> None:
    run_server(moving.target, moving.name, "10.88.0.11")
    try:
        done = moving.move()
        assert (done.status, done.error["code"]) == (3, "group-name-taken")
    finally:
        moving.target.must("stop", "--timeout", "0", moving.name)
    moving.stream.progress(50)
    assert moving.left_behind() == []


@pytest.mark.parametrize(("address", "prefix"), [("10.88.0.40", 32), ("fd88::40", 128)])
def test_migrate_where_a_stranger_has_the_address_too_is_refused(world: World, address: str, prefix: int) -> None:
    moving = Moving.made(world, address=address)
    try:
        with netns.entered(world.router):
            words = [f"{address}/{prefix}", "dev", "outside", *(["nodad"] if ":" in address else [])]
            subprocess.run(["ip", "address", "add", *words], check=True)
            links = subprocess.run(["ip", "-j", "link", "show", "outside"], check=True, capture_output=True).stdout
        stranger = json.loads(links)[0]["address"]
        done = moving.move()
        assert (done.status, done.error["code"]) == (3, "address-in-use"), done.err
        assert stranger in done.error["details"]
        # The source has it as well, as it should.
        assert mac_of(moving) not in done.error["details"]
        assert moving.copies() == [moving.source]
        assert moving.left_behind() == []
    finally:
        with netns.entered(world.router):
            subprocess.run(["ip", "address", "del", f"{address}/{prefix}", "dev", "outside"], check=True)
        moving.end()


def test_migrate_that_takes_too_long_is_rolled_back(moving: Moving) -> None:
    done = moving.move("--downtime-limit", "0.05")
    assert (done.status, done.error["code"]) == (9, "downtime-limit"), done.err
    moving.stream.progress(50)
    assert moving.copies() == [moving.source]
    assert moving.left_behind() == []


def test_migrate_over_a_slow_line_is_rolled_back(moving: Moving) -> None:
    shape = ["root", "tbf", "rate", "1mbit", "burst", "32kb", "latency", "400ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", moving.target.port, *shape], check=True)
    try:
        done = moving.move("--downtime-limit", "3")
        assert (done.status, done.error["code"]) == (9, "downtime-limit"), done.err
        assert f"{moving.target.address} was not ready in time" in done.error["details"]
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", moving.target.port, "root"], check=True)
    moving.stream.progress(50)
    assert moving.copies() == [moving.source]
    assert moving.left_behind() == []
    assert moving.move("--downtime-limit", LIMIT).status == 0
    moving.stream.progress(50)
    moving.moved()


def test_migrate_to_a_host_that_cannot_be_reached_touches_nothing(moving: Moving) -> None:
    done = moving.source.ckpt("migrate", moving.name, "--host", "10.88.0.77")
    assert (done.status, done.error["code"]) == (15, "host-unreachable")
    moving.stream.progress(50)
    assert moving.left_behind() == []


def test_dump_and_restore_of_another_host_keep_the_connection(moving: Moving, world: World) -> None:
    near, far = moving.source, moving.target
    assert moving.move("--downtime-limit", LIMIT).status == 0
    with capturing() as capture:
        image = "/root/from-afar.ckpt"
        assert near.must("dump", moving.name, "--host", far.address, "-o", image)["left_running"] is False
        assert far.groups() == {}
        assert near.must("check", image, "--host", far.address)["ok"]
        # At a terminal, which is told how far it is.
        words = f"ckpt restore {image} --host {far.address} --keep /root/kept.ckpt"
        shown = near.run("script", "--quiet", "--return", "--command", words, "/dev/null")
        assert shown.status == 0, shown
        bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.out)
        assert re.search(rf"sending to {far.address} \S+ [0-9.]+/[0-9.]+ [KM]iB [0-9.]+ [kM]B/s 0:\S+ 0:\S+", bar), bar
        assert far.run("cmp", "/root/kept.ckpt", "/root/kept.ckpt").status == 0
        far.must("verify", "/root/kept.ckpt")
        moving.stream.progress()
    assert capture.betrayals(moving.address) == []
    for host in (near, far):
        host.run("sh", "-c", "rm -f /root/*.ckpt")
    moving.moved()
    assert moving.left_behind() == []


def test_dump_of_another_host_onto_a_full_disk_lets_the_group_run_on(moving: Moving) -> None:
    near, far = moving.target, moving.source
    assert near.run("sh", "-c", "mkdir -p /run/small && mount -t tmpfs -o size=64k none /run/small").status == 0
    done = near.ckpt("dump", moving.name, "--host", far.address, "-o", "/run/small/x.ckpt")
    assert (done.status, done.error["code"]) == (11, "storage-full"), done.err
    moving.stream.progress(50)
    assert near.run("ls", "-A", "/run/small").out == ""
    near.run("umount", "/run/small")
    assert moving.left_behind() == []


def test_dump_of_another_host_to_standard_output_restores_from_standard_input(world: World) -> None:
    name, address = random_name("g"), "10.88.0.20"
    run_server(world.a, name, address)
    with patient(Stream(connect(world, address))) as stream, capturing() as capture:
        stream.progress()
        # Not by one pipe: the restore would look for the address while the group still answers for it.
        words = (
            f"set -e; cd /run; ckpt dump {name} --host a -o - >moved.ckpt; ckpt restore - <moved.ckpt; rm moved.ckpt"
        )
        done = world.b.run("sh", "-c", words)
        assert done.status == 0, done.err
        stream.progress()
    assert capture.betrayals(address) == []
    assert name not in world.a.groups()
    assert world.b.groups()[name] == "running"
    world.b.must("stop", "--timeout", "0", name)


def told_beside_ssh(moving: Moving) -> list[str]:
    """What an agent that holds the group has open, or tells everybody of it in its arguments and environment."""
    held = moving.target
    ports = [line.split()[4] for line in held.run("ss", "-Htuln").out.splitlines()]
    pids = held.run("pgrep", "-f", "fault_program agent").out.split()
    assert pids
    said = [held.run("cat", f"/proc/{pid}/{what}").out for pid in pids for what in ("cmdline", "environ")]
    return [*ports, *(one for one in said if moving.name in one or moving.address in one)]


def test_resume_on_the_target_asks_the_source(moving: Moving) -> None:
    migration = moving.leave_held("ckpt")
    assert told_beside_ssh(moving) == [f"{moving.target.address}:22"]
    refused = moving.target.ckpt("migrate", "--resume", migration)
    assert refused.status == 2, refused
    listed = moving.target.must("clean")
    assert [(one["kind"], one["done"]) for one in listed] == [("migration", False)]
    done = moving.target.must("migrate", "--resume", migration, "--host", moving.source.address)
    assert done["runs"] is None
    assert moving.copies() == [moving.source]
    moving.settle()
    moving.stream.progress(50)
    assert moving.left_behind() == []


def test_resume_source_lost_goes_on_at_the_target_and_the_source_learns_of_it(moving: Moving) -> None:
    migration = moving.leave_held("host")
    done = moving.target.must("migrate", "--resume", migration, "--source-lost")
    assert done["runs"] == "here"
    moving.stream.progress(50)
    done = moving.source.must("migrate", "--resume")
    assert done["runs"] == moving.target.address
    assert moving.copies() == [moving.target]
    moving.moved()
    moving.settle()
    moving.stream.progress(50)
    assert moving.left_behind() == []


def test_migrate_context_takes_its_address_along(world: World) -> None:
    name, address = random_name("g"), "10.88.0.30"
    run_server(world.a, name, address, isolation="ipset")
    # Whoever asks before the server listens is told so: the capture begins later, and ends before the client does.
    with patient(Stream(connect(world, address))) as stream:
        stream.progress()
        with capturing() as capture:
            world.a.must("migrate", name, "--host", world.b.address, "--downtime-limit", LIMIT)
            stream.progress()
        assert capture.betrayals(address) == []
    assert address not in world.a.run("ip", "address").out
    assert address in world.b.run("ip", "address").out
    for host in (world.a, world.b):
        assert host.run("nft", "list", "tables").out == ""
        assert host.must("clean") == []
    world.b.must("stop", "--timeout", "0", name)


def test_migrate_address_of_the_hosts_own_is_refused(world: World) -> None:
    name, address = random_name("g"), "10.88.0.31"
    assert world.a.run("ip", "address", "add", f"{address}/24", "dev", BRIDGE).status == 0
    run_server(world.a, name, address, isolation="ipset")
    done = world.a.ckpt("migrate", name, "--host", world.b.address)
    assert (done.status, done.error["code"]) == (3, "address-stays"), done.err
    assert world.a.groups()[name] == "running"
    world.a.must("stop", "--timeout", "0", name)
    world.a.run("ip", "address", "del", f"{address}/24", "dev", BRIDGE)


def test_ps_check_and_clean_of_another_host_tell_what_it_tells(moving: Moving) -> None:
    here, there = moving.target, moving.source
    for words in (["ps"], ["check"], ["check", moving.name], ["clean", "--dry-run"]):
        near = here.ckpt(*words, "--host", there.address)
        far = there.ckpt(*words)
        assert near.status == far.status, near
        if words != ["check"]:
            assert near.json == far.json or "findings" in near.json
