"""The one door to CRIU: a `criu swrk` child, spoken to over a SEQPACKET socket.

One request makes one conversation: the request goes out, CRIU answers with any number of notifications (its action
scripts, in the order of facts that `Stage` lists), each of which waits for our yes or no, and ends with the
response. Who calls gives a function for the notifications; what it raises becomes the "no", and is raised again here
when CRIU has rolled back. That answer is how a dump or a restore is committed: CRIU holds everything still while it
waits for it.

pycriu's own client knows neither notifications nor file descriptors nor error texts, so only its message
definitions (`rpc_pb2`) are used here. This module never decides what a failure means for the group.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ckpt.errors import CkptError, NotFoundError, UnsupportedError
from ckpt.kernel import syscalls
from ckpt.kernel.proc import tree_pids
from ckpt.records import dataclass

PREFIX = Path("/opt/ckpt/criu")
"""Where `scripts/install-criu` unpacks a CRIU of its own when the distribution's does not fit the running kernel."""

DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")

LOG_NAME = "criu.log"

WRAPPER_SECONDS = 5.0
"""How long what CRIU was wrapped in may outlive it."""

MAX_MESSAGE = 256 * 1024
"""CRIU reads requests into a buffer that it sizes by the message; its answers are far below this."""


class Stage(enum.StrEnum):
    """CRIU's action scripts, by the names it notifies with (criu/action-scripts.c)."""

    PRE_DUMP = "pre-dump"
    NETWORK_LOCK = "network-lock"
    QUERY_EXT_FILES = "query-ext-files"
    POST_DUMP = "post-dump"
    NETWORK_UNLOCK = "network-unlock"
    PRE_RESTORE = "pre-restore"
    SETUP_NAMESPACES = "setup-namespaces"
    POST_SETUP_NAMESPACES = "post-setup-namespaces"
    POST_RESTORE = "post-restore"
    PRE_RESUME = "pre-resume"
    POST_RESUME = "post-resume"


Version = tuple[int, int, int]
"""Major, minor, sublevel."""

Notify = Callable[[str, int], None]
"""Called with the stage and the root task's PID (0 where CRIU gives none); raising means no."""


class Feed(Protocol):
    """What comes from CRIU besides its messages, while it works."""

    def fileno(self) -> int:
        """What is readable when ``take`` has something to do; -1 while there is nothing to expect."""

    def take(self) -> None:
        """Take what has come. What it raises becomes our "no" to all that follows."""

    def abandon(self) -> None:
        """Take no more of it."""


class CriuError(CkptError):
    """CRIU said no, or died. ``details`` holds what it said; its log tells the rest."""

    status = 8

    def __init__(self, brief: str, *, code: str, errno: int = 0, details: str | None = None) -> None:
        super().__init__(brief, code=code, details=details)
        self.errno = errno


@dataclass(frozen=True, slots=True, kw_only=True)
class Criu:
    """A CRIU program, and the directory that holds the `pycriu` package of the same or a near version."""

    path: str
    python_path: Path

    @property
    def rpc(self) -> Any:
        """The `pycriu.rpc_pb2` module."""
        return self.pycriu("rpc_pb2")

    def pycriu(self, module: str) -> Any:
        """A module of `pycriu`."""
        return load_pycriu(self.python_path, module)


def find(explicit: str | None = None) -> Criu:
    """The CRIU to use: ``explicit``, ``CKPT_CRIU``, the private prefix, then PATH.

    Raises UnsupportedError (`criu-missing`, `pycriu-missing`).
    """
    candidates = [explicit] if explicit else [os.environ.get("CKPT_CRIU"), str(prefix() / "criu"), "criu"]
    for candidate in candidates:
        path = shutil.which(candidate) if candidate else None
        if path is not None:
            return Criu(path=path, python_path=_find_pycriu(Path(path)))
    raise UnsupportedError(
        f"no CRIU at {explicit}" if explicit else "CRIU is not installed",
        code="criu-missing",
        hint="run scripts/install-criu, or name one with --criu PATH or CKPT_CRIU",
    )


def require_lock_skip(criu: Criu) -> None:
    """UnsupportedError (`criu-too-old`) for a CRIU that insists on a network lock of its own, as 3.17.1 does.

    It would let go of it when the tasks are killed, and their peers would be told.
    """
    if not hasattr(criu.rpc, "SKIP"):
        raise UnsupportedError(
            f"the CRIU {criu.path} is too old to dump with",
            code="criu-too-old",
            details="it does not leave the locking of the network to others (--network-lock skip)",
            hint="run scripts/install-criu, or name a newer one with --criu PATH or CKPT_CRIU",
        )


def prefix() -> Path:
    """The private prefix: ``CKPT_CRIU_PREFIX`` or the well-known place."""
    return Path(os.environ.get("CKPT_CRIU_PREFIX") or PREFIX)


def _find_pycriu(criu: Path) -> Path:
    beside = criu.parent / "usr/lib/python3/dist-packages"
    for place in (beside, prefix() / "usr/lib/python3/dist-packages", DIST_PACKAGES):
        if (place / "pycriu").is_dir():
            return place
    raise UnsupportedError(
        "pycriu is not installed",
        code="pycriu-missing",
        details=f"looked in {beside} and {DIST_PACKAGES}",
        hint="apt-get install python3-pycriu, or run scripts/install-criu",
    )


def load_pycriu(place: Path, module: str) -> Any:
    """A module of the `pycriu` package found in ``place``, without putting the rest of that directory on sys.path."""
    if "pycriu" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "pycriu", place / "pycriu/__init__.py", submodule_search_locations=[str(place / "pycriu")]
        )
        if spec is None or spec.loader is None:
            raise UnsupportedError(f"no pycriu in {place}", code="pycriu-missing")
        package = importlib.util.module_from_spec(spec)
        sys.modules["pycriu"] = package
        # pycriu/__init__.py imports everything it has; its message definitions need none of that.
        package.__path__ = [str(place / "pycriu")]
    return importlib.import_module(f"pycriu.{module}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the swrk child is started: descriptors that it inherits, and the command that it runs under.

    ``work_dir`` is where it writes its log, by a name of the child's, if not in the directory of its images.
    A wrapper that lingers does not end with CRIU (`unshare --fork` waits for the namespace's init): it is killed.
    """

    pass_fds: tuple[int, ...] = ()
    wrapper: tuple[str, ...] = ()
    work_dir: str | None = None
    wrapper_lingers: bool = False


class Swrk:
    """A running `criu swrk`, good for one request, and for asking its version before that.

    A context manager: at its end no CRIU of ours is left.
    """

    def __init__(self, criu: Criu, launch: Launch | None = None, *, died: Callable[[], object] | None = None) -> None:
        """``died`` is called at once when CRIU dies with a request under way: what it froze runs on already.

        By a thread, whatever the caller is at.
        """
        self._died_first = died
        self._turn = threading.Lock()
        self._answered = False
        self._criu = criu
        self._launch = launch or Launch()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Swrk:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = self._stack.enter_context(ours)
        launch = self._launch
        # What CRIU says before it has opened its log; a file in memory, because nobody reads along.
        self._words = os.memfd_create("criu-stderr", os.MFD_CLOEXEC)
        self._stack.callback(os.close, self._words)
        with theirs:
            # --no-default-config: else /etc/criu/default.conf and ~/.criu/default.conf leak into every request.
            argv = [*launch.wrapper, self._criu.path, "--no-default-config"]
            # Not with the request, which knows it as a descriptor in our /proc alone.
            argv += ["--work-dir", launch.work_dir] if launch.work_dir else []
            try:
                self._process = subprocess.Popen(
                    [*argv, "swrk", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(), *launch.pass_fds),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._words,
                    # A ^C at the terminal is for us to answer; CRIU must be free to roll back.
                    start_new_session=True,
                )
            except OSError as error:
                self._stack.close()
                raise UnsupportedError(
                    f"cannot start {self._criu.path}", code="criu-missing", details=os.strerror(error.errno or 0)
                ) from error
        self._pidfd = syscalls.pidfd_open(self._process.pid)
        self._stack.callback(os.close, self._pidfd)
        return self

    @property
    def pid(self) -> int:
        """The PID of the CRIU process (of its wrapper, if there is one)."""
        return self._process.pid

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Closing the socket makes a CRIU that still works fail at its next notification and roll back by itself, so
        # it is given the time for that; there is nothing we could do to the group while it holds it.
        self._stack.close()
        if kind is not None:
            # One that somebody has stopped would hold it for ever.
            for pid in tree_pids(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        if self._launch.wrapper_lingers:
            self._process.kill()
        self._process.wait()

    def request(
        self,
        request: Any,
        notify: Notify | None = None,
        feed: Feed | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:
        """Send one ``criu_req``, answer the notifications, return the ``criu_resp``.

        ``meanwhile`` is called when the request is on its way, before any notification is answered. What ``notify`` or
        ``feed`` raises is raised when CRIU has ended. Raises CriuError (`criu-died`, `criu-failed`).
        """
        with self._watched():
            return self._converse(request, notify, feed, meanwhile)

    def version(self) -> Version:
        """Its version; it takes another request after that (keep_open, cr_service_work in criu/cr-service.c)."""
        rpc = self._criu.rpc
        found = self.request(rpc.criu_req(type=rpc.VERSION, keep_open=True)).version
        return (found.major_number, found.minor_number, found.sublevel)

    def _converse(
        self, request: Any, notify: Notify | None, feed: Feed | None, meanwhile: Callable[[], None] | None
    ) -> Any:
        rpc = self._criu.rpc
        failure: BaseException | None = None
        refused = self._answered = False
        self._send(request)
        if meanwhile is not None:
            meanwhile()
        while True:
            while feed is not None and not self._is_heard(feed):
                try:
                    feed.take()
                except BaseException as error:
                    failure = failure or error
                    feed.abandon()
            response = self._receive()
            if response.type != rpc.NOTIFY:
                break
            answer = rpc.criu_req(type=rpc.NOTIFY, notify_success=True)
            try:
                if failure is not None:
                    # Once: what CRIU tells afterwards is how it undoes its work. It may ask to be committed, if all of
                    # what ``feed`` would have taken was on its way before that failed.
                    answer.notify_success = refused
                elif notify is not None:
                    notify(response.notify.script, response.notify.pid)
            except BaseException as error:
                failure = error
                answer.notify_success = False
            refused = not answer.notify_success or refused
            self._send(answer)
        if failure is not None:
            raise failure
        if not response.success:
            details = response.cr_errmsg.strip() or self._said()
            raise CriuError("CRIU failed", code="criu-failed", errno=response.cr_errno, details=details)
        return response

    def kill(self) -> None:
        """End CRIU at once, without its undoing anything; the request then ends as if it had died (`criu-died`)."""
        for pid in tree_pids(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def require_alive(self) -> None:
        """Raise CriuError (`criu-died`) when CRIU has gone: what it froze runs on then, whatever we answer."""
        if self._poll(0, select.POLLHUP):
            raise self._died()

    def _send(self, message: Any) -> None:
        try:
            self._socket.send(message.SerializeToString())
        except OSError as error:
            raise self._died() from error

    def _is_heard(self, feed: Feed) -> bool:
        """Wait until CRIU says something or has ended, or until ``feed`` has something; whether it was CRIU."""
        if feed.fileno() < 0:
            return True
        return self._poll(None, select.POLLIN, feed.fileno()) != {feed.fileno()}

    def _receive(self) -> Any:
        if self._socket.fileno() not in self._poll(None, select.POLLIN):
            raise self._died()
        try:
            with self._turn:
                data = self._socket.recv(MAX_MESSAGE)
                response = self._criu.rpc.criu_resp.FromString(data)
                self._answered = bool(data) and response.type != self._criu.rpc.NOTIFY
        except OSError as error:
            raise self._died() from error
        if not data:
            raise self._died()
        return response

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """While the block runs, somebody is there to see CRIU die."""
        if self._died_first is None:
            yield
            return
        stop = os.eventfd(0, os.EFD_CLOEXEC)
        watcher = threading.Thread(target=self._watch, args=(self._died_first, stop), name="ckpt-criu", daemon=True)
        # It must not be what a signal is delivered to that the caller makes wait (`ckpt.holding`).
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            watcher.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            yield
        finally:
            os.eventfd_write(stop, 1)
            watcher.join()
            os.close(stop)

    def _watch(self, died: Callable[[], object], stop: int) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(stop, select.POLLIN)
        if stop in dict(poll.poll()):
            return
        with self._turn:
            # It ends when it has answered, too.
            if not self._answered and not self._has_spoken():
                died()

    def _has_spoken(self) -> bool:
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _poll(self, timeout: float | None, wanted: int, *others: int) -> set[int]:
        """Which of the socket and the process, and of ``others``, has something to say.

        The socket alone does not tell of CRIU's death: what CRIU forks inherits its end, and keeps it open.
        """
        poll = select.poll()
        poll.register(self._socket, wanted)
        poll.register(self._pidfd, select.POLLIN)
        for other in others:
            poll.register(other, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll(timeout)}

    def _died(self) -> CriuError:
        if self._died_first is not None:
            self._died_first()
        try:
            status = self._process.wait(WRAPPER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        details = "\n".join(filter(None, [f"it ended {how}", self._said()]))
        return CriuError("CRIU ended without an answer", code="criu-died", details=details)

    def _said(self) -> str | None:
        """The end of what CRIU wrote to its standard error."""
        end = os.fstat(self._words).st_size
        said = os.pread(self._words, 1024, max(0, end - 1024)).decode(errors="replace").strip()
        return said or None


def version(criu: Criu) -> Version:
    """Its version, of a CRIU that is run for that alone."""
    with Swrk(criu) as swrk:
        return swrk.version()


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What this CRIU can do on this kernel (its FEATURE_CHECK)."""

    mem_track: bool
    lazy_pages: bool
    pidfd_store: bool


def features(criu: Criu) -> Features:
    """What CRIU's FEATURE_CHECK says."""
    rpc = criu.rpc
    asked = rpc.criu_features(mem_track=True, lazy_pages=True, pidfd_store=True)
    with Swrk(criu) as swrk:
        found = swrk.request(rpc.criu_req(type=rpc.FEATURE_CHECK, features=asked)).features
    return Features(mem_track=found.mem_track, lazy_pages=found.lazy_pages, pidfd_store=found.pidfd_store)


def options(criu: Criu, values: Mapping[str, Any]) -> Any:
    """A ``criu_opts`` message from field values; UnsupportedError names a field that this CRIU does not know."""
    message = criu.rpc.criu_opts()
    for name, value in values.items():
        if name not in message.DESCRIPTOR.fields_by_name:
            raise UnsupportedError(
                f"this CRIU has no option {name}", code="criu-option", hint="install a newer CRIU: scripts/install-criu"
            )
        _set_field(message, name, value)
    return message


def _set_field(message: Any, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        getattr(message, name).CopyFrom(type(getattr(message, name))(**value))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        field = getattr(message, name)
        for item in value:
            if isinstance(item, Mapping):
                field.add(**item)
            else:
                field.append(item)
    else:
        setattr(message, name, value)


@contextlib.contextmanager
def images_directory(path: Path) -> Iterator[int]:
    """An open descriptor of a directory for CRIU images, or for its log.

    CRIU resolves ``images_dir_fd`` and ``work_dir_fd`` through /proc/<our PID>/fd, so the number is ours and stays open
    for the request.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"no directory {path}", code="images-missing") from error
    try:
        yield fd
    finally:
        os.close(fd)


def dump_request(criu: Criu, values: Mapping[str, Any]) -> Any:
    """A DUMP request with ``criu_opts`` fields, which asks for notifications."""
    return criu.rpc.criu_req(type=criu.rpc.DUMP, opts=options(criu, {**values, "notify_scripts": True}))


def restore_request(criu: Criu, values: Mapping[str, Any]) -> Any:
    """A RESTORE request with ``criu_opts`` fields, which asks for notifications."""
    return criu.rpc.criu_req(type=criu.rpc.RESTORE, opts=options(criu, {**values, "notify_scripts": True}))
