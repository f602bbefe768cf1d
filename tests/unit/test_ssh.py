"""What starts an agent on another host, with an `ssh` that runs its command here: each failure has its own words."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from ckpt import __version__
from ckpt.errors import CkptError, PermissionDeniedError, RemoteError, UnsupportedError, UsageError
from ckpt.remote import messages, ssh

AGENT = """\
import sys, os
sys.path[:0] = {path!r}
from ckpt.remote import messages
messages.PROTOCOL = {protocol}
from ckpt.remote.protocol import Channel
channel = Channel(0, 1, "near")
channel.offer("there")
channel.receive()
channel.send(messages.Done())
"""


class There:
    """The other host: a directory of programs, and the ssh that leads to it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.program("ssh", 'for last; do :; done; exec /bin/sh -c "$last"')
        self.program("id", "echo 0")

    def program(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        path = self.place / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def agent(self, protocol: int = messages.PROTOCOL, before: str = "") -> None:
        """Install a ckpt that answers one question."""
        (self.place / "agent.py").write_text(AGENT.format(path=sys.path, protocol=protocol))
        self.program("ckpt", f"{before}\nexec {sys.executable} {self.place}/agent.py")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> There:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv(ssh.VARIABLE, raising=False)
    return There(tmp_path)


def failure(**options: float) -> CkptError:
    """How the session fails."""
    with pytest.raises(CkptError) as caught, ssh.session("user@b", **options):  # type: ignore[arg-type]
        pass
    return caught.value


def asked() -> messages.Message:
    """One question and its answer."""
    with ssh.session("user@b") as session:
        assert session.hello.ckpt == __version__
        session.channel.send(messages.Ps())
        return session.channel.expect(messages.Done)


def test_session_agent_answers(there: There) -> None:
    there.agent()
    assert asked() == messages.Done()


def test_session_noise_before_the_agent_is_skipped(there: There) -> None:
    there.agent(before="echo Welcome; echo to B >&2")
    assert asked() == messages.Done()


def test_session_of_a_user_who_is_not_root_takes_sudo(there: There) -> None:
    there.agent()
    there.program("id", "echo 1000")
    there.program("sudo", '[ "$1" = -n ] || exit 1; shift; [ "$1" = -l ] && exit 0; exec "$@"')
    assert asked() == messages.Done()


def test_session_without_leave_to_be_root_is_refused(there: There) -> None:
    there.agent()
    there.program("id", "echo 1000")
    there.program("sudo", "echo 'sudo: a password is required' >&2; exit 1")
    error = failure()
    assert (type(error), error.code) == (PermissionDeniedError, "agent-no-root")
    assert "NOPASSWD" in (error.hint or "")


def test_session_without_ckpt_there_is_told(there: There) -> None:
    there.program("ssh", 'for last; do :; done; PATH=/usr/bin:/bin exec /bin/sh -c "$last"')
    error = failure()
    assert (type(error), error.code) == (UnsupportedError, "agent-missing")


def test_session_names_the_ckpt_that_was_asked_for(there: There, tmp_path: Path) -> None:
    there.agent()
    (tmp_path / "ckpt").rename(tmp_path / "it's ckpt")
    with ssh.session("b", ckpt=str(tmp_path / "it's ckpt")) as session:
        assert session.hello.host == "there"


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [
        ("Host key verification failed.", RemoteError, "host-key"),
        ("root@b: Permission denied (publickey).", PermissionDeniedError, "host-login"),
        ("ssh: connect to host b port 22: No route to host", RemoteError, "host-unreachable"),
    ],
)
def test_session_failure_of_ssh_is_told_by_its_words(there: There, said: str, kind: type[CkptError], code: str) -> None:
    there.program("ssh", f"echo '{said}' >&2; exit 255")
    error = failure()
    assert (type(error), error.code, error.details) == (kind, code, said)
    assert error.hint


def test_session_of_what_is_no_agent_is_told(there: There) -> None:
    there.program("ckpt", "echo This account is not available.")
    error = failure()
    assert (type(error), error.code) == (RemoteError, "agent-silent")
    assert "not available" in (error.details or "")


def test_session_agent_that_fails_is_told_with_its_words(there: There) -> None:
    there.program("ckpt", "echo 'No such command: agent' >&2; exit 2")
    error = failure()
    assert (error.code, error.details) == ("agent-failed", "No such command: agent")


def test_session_older_agent_is_told(there: There) -> None:
    there.agent(protocol=0)
    assert failure().code == "agent-older"


def test_session_silent_host_is_given_up(there: There) -> None:
    there.program("ckpt", "exec sleep 60")
    error = failure(seconds=0.3)
    assert (type(error), error.code) == (RemoteError, "host-timeout")


@pytest.mark.parametrize("host", ["", "-oProxyCommand=true"])
def test_session_host_that_is_an_option_is_refused(host: str) -> None:
    with pytest.raises(UsageError), ssh.session(host):
        pass


def test_session_never_speaks_of_host_keys(there: There, tmp_path: Path) -> None:
    there.program("ssh", f"printf '%s\\n' \"$@\" >{tmp_path}/argv; exit 255")
    failure()
    words = (tmp_path / "argv").read_text()
    assert "HostKey" not in words
    assert "KnownHosts" not in words


@pytest.mark.parametrize(("configured", "given"), [("0", True), ("2", False)])
def test_session_keeps_itself_alive_unless_the_user_has_said_how(
    there: There, tmp_path: Path, configured: str, given: bool
) -> None:
    answer = f'[ "$1" = -G ] && {{ echo serveraliveinterval {configured}; exit; }}'
    there.program("ssh", f'{answer}\nprintf "%s\\n" "$@" >{tmp_path}/argv\nexit 255')
    failure()
    assert ("ServerAliveInterval" in (tmp_path / "argv").read_text()) is given
