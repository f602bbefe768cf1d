"""``ckpt run``: start a group that is made to be dumped.

What can be refused is refused before anything is made: the spec, the command, the name, the addresses. Then, under
the registry's lock, the network namespace is made and filled, the first process is started in it, written into the
registry, and let go; each step pushes its undo, and a failure leaves nothing. The first process is ``tini``: it reaps
what the command leaves, passes signals on to it and ends with its exit status.

A group started by ``start_group`` belongs to the host's init from its first moment. ``run_group`` stays its parent,
passes signals on and returns its exit status.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from ckpt import registry
from ckpt.errors import NotFoundError, PermissionDeniedError, StorageError, UnsupportedError
from ckpt.kernel import context_bounds, netns, spawn, syscalls
from ckpt.kernel.ending import end_tree
from ckpt.model.groupspec import GroupSpec, LinkKind, check_spec
from ckpt.model.process import Isolation
from ckpt.records import dataclass
from ckpt.registry import GroupEntry, Operation
from ckpt.runcontext import Confinement, confine
from ckpt.runnetwork import Attachment, attach, require_addresses_free
from ckpt.stop import clear

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

MINIMAL_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

_FAILURES = ("[FATAL tini", "setpriv: ", "/usr/bin/env: ")

# tini's own statuses for a command that it cannot execute, as a shell's.
_NOT_EXECUTED = (126, 127)

_LOG_TAIL = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a group ended: ``status`` is its exit status (128+N after signal N), 0 when it was ``dumped`` away."""

    entry: GroupEntry
    status: int
    dumped: bool = False


def start_group(spec: GroupSpec) -> GroupEntry:
    """Start a group and leave it running; its entry in the registry."""
    return _start(spec, lambda _: None)[0]


def run_group(spec: GroupSpec, started: Callable[[GroupEntry], None] = lambda _: None) -> Outcome:
    """Start a group, pass signals on to it, and wait for its end; ``started`` is called when it runs.

    What the group had on this host is taken away at its end, as by ``stop_group``.
    """
    with _forwarding() as forward:
        # The group's first process is orphaned by the helper that makes it; as a subreaper we become its parent.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        try:
            entry, ended = _start(spec, forward)
        finally:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
        started(entry)
        wait_status = os.waitpid(entry.pid, 0)[1] if ended is None else ended
    if _is_dumped(entry, wait_status):
        return Outcome(entry=entry, status=0, dumped=True)
    clear(entry)
    return Outcome(entry=entry, status=_shell_status(wait_status))


def default_name(command: str) -> str:
    """A name for a group that runs ``command``: its file name, made fit, and a few random digits."""
    kept = "".join(char if char.isascii() and char.isalnum() else "-" for char in Path(command).name.lower())
    return f"{kept.strip('-')[:50] or 'group'}-{secrets.token_hex(2)}"


def _start(spec: GroupSpec, on_pid: Callable[[int], None]) -> tuple[GroupEntry, int | None]:
    """The entry of the started group, and its wait status when it has ended already.

    ``on_pid`` is called with the root task's PID when the group is there to stay.
    """
    check_spec(spec)
    _require_root()
    tini = _find_tini()
    _require_workdir(spec.workdir)
    _require_command(spec)
    with Operation("run", spec.name) as operation, registry.locked(), ExitStack() as undo:
        registry.require_free(spec.name)
        require_addresses_free(spec)
        attachment = Attachment()
        namespace: int | None = None
        confined: Confinement | None = None
        if spec.isolation is Isolation.IPSET:
            confined = confine(spec, operation, undo)
        if spec.isolation is Isolation.NETNS:
            namespace = netns.create()
            undo.callback(os.close, namespace)
            attachment = attach(spec, namespace, operation, undo)
        log_path, log = _open_log(spec.name)
        undo.callback(os.close, log)
        log_start = os.fstat(log).st_size
        dropping: tuple[str, ...] = ()
        environment = spec.environment
        if confined:
            dropping, environment = context_bounds.dropping(confined.bounds, spec.environment)
        first = spawn.FirstProcess(
            argv=(tini, "--", *dropping, *spec.command),
            environment=environment,
            workdir=spec.workdir,
            hostname=spec.name,
            umask=spec.umask,
            log=log,
            netns=namespace,
            bounds=confined.bounds if confined else None,
            launcher=dropping[0] if dropping else None,
        )
        with spawn.starting(first) as starting:
            entry = _entry(spec, starting.pid, namespace, attachment, log_path, confined)
            undo.callback(end_tree, starting.pid, timeout=0)
            registry.add(entry)
            undo.callback(registry.remove, spec.name, pid=entry.pid)
            _log.info("made the first process, PID %d, with its log in %s", entry.pid, log_path)
            ended = starting.go()
        _require_executed(ended, spec, log_path, log_start)
        on_pid(entry.pid)
        # The group is there: from here on nothing is undone, but what only served to make it.
        undo.pop_all()
        os.close(log)
        if namespace is not None:
            os.close(namespace)
        return entry, ended


def _entry(
    spec: GroupSpec,
    pid: int,
    namespace: int | None,
    attachment: Attachment,
    log: Path,
    confined: Confinement | None,
) -> GroupEntry:
    return GroupEntry(
        name=spec.name,
        pid=pid,
        start_time=registry.start_time(pid) or 0,
        isolation=spec.isolation,
        netns=None if namespace is None else netns.inode(namespace),
        links=attachment.links,
        bridge=spec.link if spec.kind is LinkKind.VETH and confined is None else None,
        bridge_made=attachment.bridge_made,
        parent=spec.link if spec.kind is not LinkKind.VETH else None,
        addresses=confined.members if confined else tuple(spec.addresses),
        context=confined.context if confined else None,
        given=confined.given if confined else (),
        root_may_leave=spec.root_may_leave,
        log=str(log),
        command=tuple(spec.command),
    )


def _require_root() -> None:
    if os.geteuid() != 0:
        raise PermissionDeniedError("a group can only be started by root", code="root-needed", hint="use sudo")


def _find_tini() -> str:
    tini = shutil.which("tini", path=f"{os.environ.get('PATH', '')}:{MINIMAL_ENVIRONMENT['PATH']}")
    if tini is None:
        raise UnsupportedError(
            "tini is not installed",
            code="tool-missing",
            details="it is the first process of every group",
            hint="apt-get install tini",
        )
    return tini


def _require_command(spec: GroupSpec) -> None:
    """Refuse a command that tini could not execute, which looks for it as we do here."""
    command = spec.command[0]
    if "/" in command:
        looked_in, candidates = None, [Path(spec.workdir, command)]
    else:
        looked_in = spec.environment.get("PATH", os.defpath)
        candidates = [Path(spec.workdir, place, command) for place in looked_in.split(":")]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise NotFoundError(
            f"there is no command {command}",
            code="command-missing",
            details=f"looked in {looked_in}" if looked_in is not None else None,
            hint=None if looked_in is not None else "a relative path counts from --workdir",
        )
    if not any(os.access(path, os.X_OK) for path in found):
        raise PermissionDeniedError(
            f"{found[0]} cannot be executed", code="command-not-executable", hint=f"chmod +x {found[0]}"
        )


def _require_workdir(workdir: str) -> None:
    if not Path(workdir).is_dir():
        raise NotFoundError(f"there is no directory {workdir}", code="workdir-missing", hint="name one with --workdir")


def log_directory() -> Path:
    """Where the logs of groups are."""
    return Path(os.environ.get("CKPT_LOG_DIR") or "/var/log/ckpt")


def _open_log(name: str) -> tuple[Path, int]:
    """The group's log, to be appended to. It may hold secrets, so it is root's alone."""
    path = log_directory() / f"{name}.log"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return path, os.open(path, flags, 0o600)
    except OSError as error:
        raise StorageError(
            f"the log {path} cannot be opened",
            code="log-open",
            details=os.strerror(error.errno or errno.EIO),
            hint="CKPT_LOG_DIR names another directory",
        ) from error


def _require_executed(ended: int | None, spec: GroupSpec, log: Path, start: int) -> None:
    """NotFoundError when tini could not execute the command, though the file was there (its interpreter may not be)."""
    if ended is None or _shell_status(ended) not in _NOT_EXECUTED:
        return
    with log.open("rb") as stream:
        stream.seek(start)
        written = stream.read(_LOG_TAIL).decode(errors="replace")
    reason = next((line for line in written.splitlines() if line.startswith(_FAILURES)), None)
    if reason is not None:
        raise NotFoundError(f"{spec.command[0]} cannot be executed", code="command-not-executed", details=reason)


def _shell_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


def _is_dumped(entry: GroupEntry, wait_status: int) -> bool:
    """Whether a dump took the group away: its tasks are killed while the dump is still under way."""
    if not os.WIFSIGNALED(wait_status) or os.WTERMSIG(wait_status) != signal.SIGKILL:
        return False
    return any(work.kind == "dump" and work.group == entry.name for work in registry.operations())


@contextlib.contextmanager
def _forwarding() -> Iterator[Callable[[int], None]]:
    """Pass signals on to the process whose PID is given to the block's value; before that they act as they did."""
    target: list[int] = []

    def install(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            target.append(syscalls.pidfd_open(pid))

    def pass_on(number: int, frame: FrameType | None) -> None:
        if target:
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(target[0], number)
            return
        handler = before.get(number)
        if callable(handler):
            handler(number, frame)
        else:
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in FORWARDED}
        for forwarded in FORWARDED:
            signal.signal(forwarded, pass_on)
    try:
        yield install
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for pidfd in target:
            os.close(pidfd)
