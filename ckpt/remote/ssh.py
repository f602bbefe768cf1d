"""Starts the agent on another host, through the system's own `ssh`.

The user's `ssh` is what is run, with the user's environment: ~/.ssh/config, agents, ProxyJump, ControlMaster and
known_hosts hold as they do at a shell, and a password is asked for at the terminal. No option about host keys is ever
given. The remote command is a line that every login shell understands; it finds ckpt, and takes `sudo -n` where the
user is not root. Its exit status tells what was missing, and each failure is an error with its remedy. Nothing secret
is put into an argument or the environment.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator

from ckpt.errors import PermissionDeniedError, RemoteError, UnsupportedError, UsageError
from ckpt.records import dataclass
from ckpt.remote.messages import Hello
from ckpt.remote.protocol import Channel, ChannelClosedError, ChannelTimeoutError

CONNECT_SECONDS = 60.0
"""How long it may take until the agent answers; somebody may have to type a password meanwhile."""

END_SECONDS = 5.0
"""How long ssh may take to end when its pipes are closed."""

VARIABLE = "CKPT_REMOTE"
"""Names the ckpt of other hosts, where it is not simply `ckpt` on PATH."""

# A cable that is cut says nothing: without this a broken connection is noticed after hours. Who has set it otherwise
# in ~/.ssh/config keeps that, which an option here would overrule.
_ALIVE = ("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3")

_NO_CKPT, _NO_SUDO, _NOT_ALLOWED, _SSH_FAILED = 121, 122, 123, 255
_WORDS = 4096

_SCRIPT = """\
c=$(command -v {ckpt}) || exit {no_ckpt}
[ "$(id -u)" = 0 ] && exec "$c" agent
command -v sudo >/dev/null || exit {no_sudo}
sudo -n -l "$c" agent >/dev/null 2>&1 || exit {not_allowed}
exec sudo -n "$c" agent"""


@dataclass(frozen=True, slots=True)
class Session:
    """An agent that has answered. ``channel`` speaks to it, ``hello`` is what it said of itself."""

    channel: Channel
    hello: Hello
    process: subprocess.Popen[bytes]

    def close(self) -> None:
        """End the connection now. Again is nothing."""
        _end(self.process)


@contextlib.contextmanager
def session(host: str, *, ckpt: str | None = None, seconds: float = CONNECT_SECONDS) -> Iterator[Session]:
    """An agent on ``host``, which is whatever `ssh` takes; ``ckpt`` is the program there.

    Raises RemoteError (`host-unreachable`, `host-key`, `agent-silent`, `agent-older` …), UnsupportedError
    (`agent-missing`), PermissionDeniedError (`agent-no-root`, `host-login`).
    """
    if not host or host.startswith("-"):
        raise UsageError(f"{host!r} is no host", code="usage", hint="--host takes what `ssh` takes")
    words = os.memfd_create("ssh-stderr", os.MFD_CLOEXEC)
    try:
        process = _start(host, ckpt or os.environ.get(VARIABLE) or "ckpt", words)
        try:
            yield _greeted(host, process, words, time.monotonic() + seconds)
        finally:
            _end(process)
    finally:
        os.close(words)


def remote_command(ckpt: str) -> str:
    """What the login shell of the other host is to run: one word for `sh`, whatever that shell is."""
    script = _SCRIPT.format(
        ckpt=shlex.quote(ckpt), no_ckpt=_NO_CKPT, no_sudo=_NO_SUDO, not_allowed=_NOT_ALLOWED
    ).replace("\n", "; ")
    # Double quotes within, so that csh and fish too take the single quotes round it as they stand.
    return f"exec sh -c {shlex.quote(script)}"


def _start(host: str, ckpt: str, words: int) -> subprocess.Popen[bytes]:
    try:
        alive = () if _is_kept_alive(host) else _ALIVE
        argv = ["ssh", "-T", "-x", "-o", "ClearAllForwardings=yes", *alive, "--", host, remote_command(ckpt)]
        return subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, bufsize=0, preexec_fn=_ignore_interrupts
        )
    except FileNotFoundError as error:
        raise UnsupportedError(
            "ssh is not installed", code="tool-missing", hint="install the package openssh-client"
        ) from error


def _is_kept_alive(host: str) -> bool:
    """Whether the user's configuration has ssh ask a silent ``host`` whether it is still there."""
    said = subprocess.run(["ssh", "-G", "--", host], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    words = (line.split() for line in said.splitlines())
    return any(word[:1] == ["serveraliveinterval"] and word[1:] != ["0"] for word in words)


def _ignore_interrupts() -> None:
    """A ^C at the terminal is for ckpt to answer: the connection is what its undoing goes over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _greeted(host: str, process: subprocess.Popen[bytes], words: int, deadline: float) -> Session:
    assert process.stdin is not None and process.stdout is not None
    channel = Channel(process.stdout.fileno(), process.stdin.fileno(), host)
    try:
        return Session(channel, channel.greet(deadline), process)
    except ChannelTimeoutError as error:
        raise RemoteError(
            f"{host} does not answer",
            code="host-timeout",
            details=_said(words),
            hint=f"does `ssh {host} true` come to an end?",
        ) from error
    except RemoteError as error:
        if not (isinstance(error, ChannelClosedError) or error.code == "agent-silent"):
            raise
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        raise _explained(host, process.returncode, _said(words)) or error from error


def _explained(host: str, status: int | None, said: str | None) -> Exception | None:
    """What ssh's exit status, and what it said, mean; None when it is not ssh's fault."""
    if status == _SSH_FAILED:
        return _ssh_failed(host, said)
    if status == _NO_CKPT:
        return UnsupportedError(
            f"there is no ckpt on {host}",
            code="agent-missing",
            details=said,
            hint=f"install ckpt there, or name it: --remote-ckpt PATH, or {VARIABLE}",
        )
    if status in (_NO_SUDO, _NOT_ALLOWED):
        missing = "sudo is not installed there" if status == _NO_SUDO else "sudo asks for a password there, or refuses"
        return PermissionDeniedError(
            f"ckpt may not run as root on {host}",
            code="agent-no-root",
            details=missing,
            hint="log in as root (--host root@…), or allow it there: `NAME ALL=(root) NOPASSWD: /…/ckpt agent`",
        )
    if status:
        return RemoteError(
            f"ckpt could not be started on {host}", code="agent-failed", details=said, hint=f"try `ssh {host} ckpt ps`"
        )
    return None


def _ssh_failed(host: str, said: str | None) -> Exception:
    text = said or ""
    if "Host key verification failed" in text or "REMOTE HOST IDENTIFICATION" in text:
        return RemoteError(
            f"the host key of {host} is not the known one, or not known",
            code="host-key",
            details=said,
            hint=f"`ssh {host} true` once, and compare the key; ckpt never takes one by itself",
        )
    if "Permission denied" in text:
        return PermissionDeniedError(
            f"{host} does not let us in",
            code="host-login",
            details=said,
            hint=f"`ssh {host} true` has to work for the user that runs ckpt, which may be root's ssh under sudo",
        )
    return RemoteError(
        f"{host} cannot be reached", code="host-unreachable", details=said, hint=f"does `ssh {host} true` work?"
    )


def _said(words: int) -> str | None:
    """The end of what ssh, and what it ran, wrote to standard error."""
    end = os.fstat(words).st_size
    return os.pread(words, _WORDS, max(0, end - _WORDS)).decode(errors="replace").strip() or None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes, which ends the agent's session, and see ssh end."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
