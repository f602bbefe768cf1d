"""The one door for subprocesses.

Every tool that ckpt calls goes through ``run`` or ``start``: the arguments are a list and never a shell's text, the
environment is explicit (messages in English, whatever the user's locale), nothing is inherited but what is passed,
and a failure is one error with the tool's own words. A child starts in the network namespace that is asked for,
because it inherits the namespace of the thread that starts it. Nothing is ever printed here.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import ClassVar

from ckpt.errors import CkptError, UnsupportedError
from ckpt.kernel.netns import entered

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_PACKAGES = {
    "nft": "nftables",
    "ip": "iproute2",
    "criu": "criu",
    "ssh": "openssh-client",
    "iptables-legacy-save": "iptables",
    "iptables-legacy-restore": "iptables",
    "ip6tables-legacy-save": "iptables",
    "ip6tables-legacy-restore": "iptables",
}


class CommandError(CkptError):
    """A tool ran and failed: ``returncode`` is its exit status, ``details`` what it wrote to its standard error."""

    status: ClassVar[int] = 1

    def __init__(self, brief: str, *, returncode: int | None, details: str | None, hint: str | None = None) -> None:
        super().__init__(brief, code="command-failed", details=details, hint=hint)
        self.returncode = returncode


def run(argv: Sequence[str], *, input: bytes | None = None, netns: int | None = None, timeout: float = 30) -> bytes:
    """Run ``argv`` to its end, inside ``netns`` when given, and return its standard output.

    Raises ``UnsupportedError`` (``tool-missing``) when the tool is absent and ``CommandError`` when it fails or takes
    longer than ``timeout`` seconds.
    """
    process = start(argv, netns=netns, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE)
    with process:
        try:
            output, errors = process.communicate(input, timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise CommandError(
                f"{argv[0]} did not finish within {timeout:g} seconds", returncode=None, details=shlex.join(argv)
            ) from error
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        details = errors.decode(errors="replace").strip() or shlex.join(argv)
        raise CommandError(
            f"{argv[0]} failed with status {process.returncode}", returncode=process.returncode, details=details
        )
    return output


def start(
    argv: Sequence[str], *, netns: int | None = None, stdin: int = subprocess.PIPE, stdout: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """Start ``argv``, inside ``netns`` when given, with its standard streams as pipes; the caller ends and reaps it."""
    # No home: an interactive nft would leave its history there.
    environment = {"PATH": os.environ.get("PATH", _PATH), "LC_ALL": "C", "HOME": "/nonexistent"}
    with contextlib.nullcontext() if netns is None else entered(netns):
        try:
            return subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment)
        except FileNotFoundError as error:
            raise UnsupportedError(
                f"{argv[0]} is not installed",
                code="tool-missing",
                details=f"needed to run: {shlex.join(argv)}",
                hint=f"install the package {_PACKAGES.get(argv[0], argv[0])}",
            ) from error
