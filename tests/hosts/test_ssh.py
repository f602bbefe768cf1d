"""The user's own ssh with what people have in their configurations, sudo and login shells, against a real sshd."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.hosts.machines import ROOT, Machine, World

USER = "mover"

# Seen by this host alone. `*` for a password is none; `!` would be an account that is locked.
_ADD_USER = f"""\
set -e
for file in hosts passwd shadow; do cp -p /etc/$file /run/$file; done
# sudo looks up the host's own name.
echo "127.0.0.1 $(hostname)" >>/run/hosts
echo '{USER}:x:64990:64990::/run/{USER}:/bin/sh' >>/run/passwd
echo '{USER}:*:19000:0:99999:7:::' >>/run/shadow
for file in hosts passwd shadow; do mount --bind /run/$file /etc/$file; done
install -d -m 700 -o 64990 -g 64990 /run/{USER} /run/{USER}/.ssh
install -m 600 -o 64990 -g 64990 {{keys}}/user.pub /run/{USER}/.ssh/authorized_keys
printf '%s\\n' 'root ALL=(ALL) ALL' '{{rule}}' >/run/sudoers
chmod 440 /run/sudoers
mount --bind /run/sudoers /etc/sudoers
"""
_TAKE_USER_AWAY = (
    f"cd /etc && umount sudoers hosts passwd shadow && cd /run && rm -r sudoers hosts passwd shadow {USER}"
)

# The agent as another version has it, as far as the first message shows.
_OTHER_PROTOCOL = """\
#!{python}
import sys
sys.path.insert(0, "{root}")
from ckpt.remote import protocol
protocol.PROTOCOL += {by}
from ckpt.cli.main import main
main()
"""


@contextlib.contextmanager
def configured(host: Machine, text: str) -> Iterator[None]:
    """With more in ~/.ssh/config of ``host``'s root."""
    path = host.place / "root/.ssh/config"
    before = path.read_text()
    path.write_text(text + before)
    yield
    path.write_text(before)


@contextlib.contextmanager
def user(host: Machine, rule: str = "") -> Iterator[None]:
    """A user of ``host`` who is not root, with a line in its sudoers."""
    added = host.run("sh", "-c", _ADD_USER.format(keys=host.keys, rule=rule))
    assert added.status == 0, added.err
    yield
    assert host.run("sh", "-c", _TAKE_USER_AWAY).status == 0


def test_host_of_the_configuration_by_a_jump(world: World) -> None:
    with configured(world.a, "Host far\n    HostName 10.88.0.2\n    ProxyJump a\n"):
        assert world.a.must("ps", "--host", "far") == []


def test_sessions_over_one_shared_connection(world: World) -> None:
    shared = "    HostName 10.88.0.2\n    ControlMaster auto\n    ControlPath /run/cm-%C\n    ControlPersist 60\n"
    logins = (world.b.place / "sshd.log").read_text().count("Accepted publickey")
    with configured(world.a, f"Host shared\n{shared}"):
        for _ in range(2):
            assert world.a.must("ps", "--host", "shared") == []
        assert world.a.run("ssh", "-O", "exit", "shared").status == 0
    assert (world.b.place / "sshd.log").read_text().count("Accepted publickey") == logins + 1


@pytest.mark.parametrize("known", ["", "10.88.0.2 {other}"], ids=["unknown", "changed"])
def test_host_key_that_is_not_the_known_one_is_refused(world: World, tmp_path: Path, known: str) -> None:
    hosts = tmp_path / "known_hosts"
    hosts.write_text(known.format(other=(world.a.keys / "host_a.pub").read_text()))
    with configured(world.a, f"Host b\n    UserKnownHostsFile {hosts}\n"):
        done = world.a.ckpt("ps", "--host", "b")
    assert (done.status, done.error["code"]) == (15, "host-key"), done.err
    assert "`ssh b true`" in done.error["hint"]


def test_login_shell_that_prints_does_no_harm(world: World) -> None:
    profile = world.b.place / "root/.bashrc"
    profile.write_text("echo Welcome to B; echo and to its errors >&2\n")
    try:
        assert world.a.run("ssh", "b", "true").out == "Welcome to B\n"
        assert world.a.must("ps", "--host", "b") == []
    finally:
        profile.unlink()


def test_ckpt_that_is_not_there_is_told(world: World) -> None:
    done = world.a.ckpt("ps", "--host", "b", "--remote-ckpt", "/opt/none/ckpt")
    assert (done.status, done.error["code"]) == (8, "agent-missing"), done.err


@pytest.mark.parametrize(("by", "code", "place"), [(-1, "agent-older", "there"), (1, "agent-newer", "here")])
def test_ckpt_of_another_protocol_is_told_on_either_side(world: World, by: int, code: str, place: str) -> None:
    other = world.b.place / "bin/ckpt-other"
    other.write_text(_OTHER_PROTOCOL.format(python=sys.executable, root=ROOT, by=by))
    other.chmod(0o755)
    try:
        done = world.a.ckpt("ps", "--host", "b", "--remote-ckpt", str(other))
        assert (done.status, done.error["code"]) == (15, code), done.err
        assert f"install the newer of the two {place}" in done.error["hint"]
    finally:
        other.unlink()


def test_user_who_is_not_root_takes_sudo_where_it_is_allowed(world: World) -> None:
    require(Path("/usr/bin/sudo").exists(), "sudo is not installed")
    with user(world.b):
        done = world.a.ckpt("ps", "--host", f"{USER}@b")
        assert (done.status, done.error["code"]) == (7, "agent-no-root"), done.err
        assert "NOPASSWD" in done.error["hint"]
    with user(world.b, f"{USER} ALL=(root) NOPASSWD: /usr/local/bin/ckpt agent"):
        assert world.a.must("ps", "--host", f"{USER}@b") == []


def test_login_of_an_unknown_user_is_told(world: World) -> None:
    done = world.a.ckpt("ps", "--host", "nobody-such@b")
    assert (done.status, done.error["code"]) == (7, "host-login"), done.err
