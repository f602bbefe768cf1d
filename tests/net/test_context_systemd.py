"""Contexts on a host that systemd runs: their cgroups are below scopes that it has given away, and go with these."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt.kernel import cgroup2, context_places, scope
from tests.conftest import random_name, require
from tests.net import context_lab, systemd_world
from tests.net.context_lab import Lab, ip
from tests.net.systemd_world import World

CKPT = (sys.executable, "-c", "from ckpt.cli.main import main; main()")
FIRST, OTHER = ip("first", 4), ip("other", 4)
SECONDS = 20.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    with context_lab.lab(tmp_path / "state") as found:
        yield found


@pytest.fixture
def hierarchy() -> str:
    return "unified"


@pytest.fixture
def world(hierarchy: str, place: Lab) -> Iterator[World]:
    require(systemd_world.is_installed(), "systemd is not installed")
    with systemd_world.booted(hybrid=hierarchy == "hybrid") as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    return {"CKPT_STATE_DIR": str(tmp_path / "state"), "CKPT_LOG_DIR": str(tmp_path / "log")}


def in_context(name: str) -> tuple[str, ...]:
    """The beginning of the command that starts a group."""
    return ("run", "--name", name, "--isolation", "ipset", "--root-may-leave", "--address", FIRST, "--")


def gone(world: World) -> bool:
    """Whether systemd knows of no context any more; it is told of an empty cgroup, and takes a moment."""
    return comes(lambda: not world.scopes() and not world.cgroups())


def comes(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` is true before long."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("hierarchy", ["unified", "hybrid"])
def test_context_is_in_a_scope_of_its_own_and_goes_with_its_group(
    place: Lab, world: World, settings: dict[str, str]
) -> None:
    name = random_name("g")
    world.run(*CKPT, *in_context(name), "sleep", "1000", environment=settings)
    (unit,) = world.scopes()
    assert unit.startswith("ckpt-")
    assert unit.endswith(f"-{name}.scope")
    cgroup = f"system.slice/{unit}/{unit.removesuffix('.scope')}"
    # The one that held the scope ends with the ckpt that had asked for it.
    assert comes(lambda: not world.root.joinpath(f"system.slice/{unit}/hold/cgroup.procs").read_text())
    assert world.root.joinpath(cgroup, "cgroup.procs").read_text()
    shown = world.run("systemctl", "show", unit, "--property=Delegate,ActiveState")
    assert set(shown.split()) == {"Delegate=yes", "ActiveState=active"}
    (listed,) = json.loads(world.run(*CKPT, "context", "--json", environment=settings))
    assert (listed["name"], listed["cgroup"].partition("/system.slice/")[2]) == (name, cgroup.partition("/")[2])
    probe = f"import socket; socket.socket().bind(({OTHER!r}, 80))"
    with pytest.raises(AssertionError, match="Cannot assign requested address"):
        world.run(*CKPT, "exec", name, "--", sys.executable, "-c", probe, environment=settings)
    world.run(*CKPT, "stop", name, environment=settings)
    assert gone(world)


def test_dump_takes_the_scope_away_and_restore_asks_for_it_again(
    place: Lab, world: World, settings: dict[str, str], tmp_path: Path
) -> None:
    name, image = random_name("g"), str(tmp_path / "image.ckpt")
    world.run(*CKPT, *in_context(name), "sleep", "1000", environment=settings)
    (unit,) = world.scopes()
    world.run(*CKPT, "dump", name, "-o", image, environment=settings)
    assert gone(world)
    world.run(*CKPT, "restore", image, environment=settings)
    assert world.scopes() == [unit]
    assert world.root.joinpath(f"system.slice/{unit}/{unit.removesuffix('.scope')}/cgroup.procs").read_text()


def test_root_in_a_scope_that_was_given_away_stays_in_its_context(
    place: Lab, world: World, settings: dict[str, str]
) -> None:
    """As on every host of systemd's, which mounts the hierarchy so."""
    name, script = random_name("g"), context_lab.LEAVING.replace("ADDRESS", OTHER)

    def said() -> list[str]:
        return world.run(*CKPT, "logs", name, environment=settings).splitlines()

    with context_lab.boundaries(on=True):
        world.run(*CKPT, *in_context(name), sys.executable, "-c", script, environment=settings)
        # As long as the boundaries are there: the group tries it after ckpt has returned.
        assert comes(lambda: len(said()) == len(context_lab.STAYED))
    assert said() == context_lab.STAYED


def test_group_that_ends_by_itself_leaves_no_scope(place: Lab, world: World, settings: dict[str, str]) -> None:
    world.run(*CKPT, *in_context(random_name("g")), "true", environment=settings)
    assert gone(world)
    world.run(*CKPT, "clean", environment=settings)
    assert "fd63:" not in world.run("ip", "addr", "show", "dev", "lo")


def test_systemd_that_gives_no_scope_leaves_the_context_below_the_root(
    place: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lab has no systemd that could be asked, and is told that it has."""
    require(systemd_world.is_installed(), "systemd is not installed")
    monkeypatch.setattr(scope, "_BOOTED", tmp_path)
    made = place.context(FIRST)
    assert Path(made.cgroup).parent == cgroup2.root()
    assert f"the context {made.name} has a cgroup without a scope of systemd's: " in caplog.text
    assert place.inside(made).fails(f"socket.socket().bind(({OTHER!r}, 80))") == "EADDRNOTAVAIL"


def test_context_is_known_by_its_path() -> None:
    name = f"ckpt-{context_places.netns_cookie():x}-web"
    for path in (
        f"/{name}",
        f"/{name}/below",
        f"/system.slice/{name}.scope/{name}",
        f"/system.slice/{name}.scope/{name}/x",
    ):
        assert (context_places.is_context(path), context_places.name_of(path)) == (True, "web")
    other = "/system.slice/ckpt-1ffffffff-web.scope/ckpt-1ffffffff-web"
    assert (context_places.is_context(other), context_places.name_of(other)) == (True, None)
    for path in ("/", "/user.slice", f"/system.slice/{name}.scope", f"/system.slice/{name}.scope/hold", f"/x/{name}"):
        assert (context_places.is_context(path), context_places.name_of(path)) == (False, None)
