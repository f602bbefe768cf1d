"""`ckpt dump`: a group, with the network it lives in, becomes one file.

Facts are read and checked while the group runs; what would fail is refused here, and nothing was touched. Then new
connections are kept out, CRIU freezes the group, and the network is locked, so that no peer learns of what follows.
What stands still is read into records, which begin the image; memory follows as CRIU hands it out (`writing`). CRIU
asks whether to go on, and holds everything still for the answer: the image is completed and gets its name, and the
answer is yes. That is the point of no return. CRIU then kills the tasks, and their namespace and links are taken down
without a packet having left.

Whatever fails before that point is answered with no: CRIU lets the group go on, and the lock is taken away. With
`leave_running` there is no such point: the group always goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckpt import carrying, context, context_record, forecast, held, registry, spaces
from ckpt.carrying import OpenFiles
from ckpt.check import GHOST_LIMIT
from ckpt.errors import CkptError, ExistsError, NotFoundError, RefusedError, RolledBackError, StorageError
from ckpt.freeze_limit import FreezeLimit
from ckpt.handover import Destination, Handover, Progress, StreamHandover
from ckpt.holding import SignalHold
from ckpt.kernel import (
    criu,
    datagrams,
    ending,
    host,
    link_remaps,
    mntns,
    netns,
    proc,
    rtnl_group,
    sockdiag,
    takedown,
    tmpfs,
)
from ckpt.kernel.group_lock import GroupLock
from ckpt.kernel.lock import NetworkLock
from ckpt.model.checkpoint import Checkpoint, CriuNotes, Group
from ckpt.model.finding import Severity, refuse_blocked
from ckpt.model.process import GroupFacts, Isolation, Process
from ckpt.model.socket import Socket
from ckpt.orphans import wait_for_end
from ckpt.pins import pinned
from ckpt.places import IMAGES
from ckpt.records import dataclass
from ckpt.silence import deliver, scope_of, settle
from ckpt.spaces import NETNS_KEY
from ckpt.turns import Turn
from ckpt.writing import Writing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpReport:
    """A dump that succeeded. Sizes in bytes; ``frozen_seconds`` from the freeze to the group's end or resumption."""

    name: str
    path: Path
    image_id: str
    size: int
    raw_size: int
    frozen_seconds: float
    processes: int
    connections: int
    left_running: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """What the caller asked for; see `ckpt dump --help`."""

    leave_running: bool = False
    tcp_close: bool = False
    skip_in_flight: bool = False
    codec: str = "zstd"
    force: bool = False
    with_files: tuple[Path, ...] = ()
    open_files: OpenFiles = OpenFiles.SMALL
    max_freeze: float | None = None


def dump_group(
    target: str | int,
    output: Path | None = None,
    *,
    leave_running: bool = False,
    tcp_close: bool = False,
    skip_in_flight: bool = False,
    codec: str = "zstd",
    force: bool = False,
    with_files: Sequence[Path] = (),
    open_files: OpenFiles = OpenFiles.SMALL,
    max_freeze: float | None = None,
    progress: Progress | None = None,
    criu_path: str | None = None,
    handover: Handover | None = None,
) -> DumpReport:
    """Dump the group called ``target``, or the process tree below the PID ``target``, into ``output``.

    ``with_files`` and ``open_files`` say which files of the host travel along (`ckpt.carrying`).
    ``max_freeze`` are the seconds for which the group may stand still, before it goes on and there is no image.
    ``handover`` is asked before the group is taken away, where another side has a say in that.
    Raises RefusedError when a check finds what would fail (nothing was touched), RolledBackError when the dump failed
    (the group runs on), and what is said of a missing group, a taken file name or a missing CRIU.
    """
    options = DumpOptions(
        leave_running=leave_running,
        tcp_close=tcp_close,
        skip_in_flight=skip_in_flight,
        codec=codec,
        force=force,
        with_files=carrying.check_named(with_files),
        open_files=open_files,
        max_freeze=max_freeze,
    )
    handover = handover or Handover()
    program = criu.find(criu_path)
    criu.require_lock_skip(program)
    entry, root = find_root(target)
    _require_idle(root)
    facts = proc.read_group(root)
    findings = forecast.findings_of(facts)
    refuse_blocked(findings, f"{target} cannot be dumped")
    name = entry.name if entry else _name_for(facts.processes[0])
    path = _output_path(output, name, force=force)
    with (
        FreezeLimit(max_freeze, name) as limit,
        registry.Operation("dump", name) as operation,
        contextlib.ExitStack() as cleanup,
    ):
        dump = _Dump(program, facts, entry, name, path, options, operation, cleanup, handover, limit, progress)
        warnings = tuple(f"{found.subject}: {found.reason}" for found in findings if found.severity is Severity.WARN)
        return dump.run(warnings)


def dump_stream(
    target: str | int,
    destination: Destination,
    *,
    leave_running: bool = False,
    tcp_close: bool = False,
    skip_in_flight: bool = False,
    codec: str = "zstd",
    with_files: Sequence[Path] = (),
    open_files: OpenFiles = OpenFiles.SMALL,
    max_freeze: float | None = None,
    progress: Progress | None = None,
    criu_path: str | None = None,
    handover: Handover | None = None,
) -> DumpReport:
    """Dump as `dump_group` does, but to a ``destination`` that is no file of ours: nothing is stored here."""
    IMAGES.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What lies beside an image while it is made needs a place all the same, under a name that nobody has.
    beside = IMAGES / f"stream-{secrets.token_hex(4)}.ckpt"
    report = dump_group(
        target,
        beside,
        leave_running=leave_running,
        tcp_close=tcp_close,
        skip_in_flight=skip_in_flight,
        codec=codec,
        with_files=with_files,
        open_files=open_files,
        max_freeze=max_freeze,
        progress=progress,
        criu_path=criu_path,
        handover=handover or StreamHandover(destination),
    )
    return replace(report, path=Path("-"))


def find_root(target: str | int) -> tuple[registry.GroupEntry | None, int]:
    """The registry's entry, if there is one, and the PID of the root task that ``target`` names."""
    if isinstance(target, int):
        return registry.by_pid(target), target
    entry = registry.get(target)
    if not entry.alive:
        raise NotFoundError(
            f"the group {target} has exited",
            code="group-exited",
            details=f"PID {entry.pid} is gone",
            hint=f"`ckpt logs {target}` may say why; `ckpt stop {target}` clears it away",
        )
    return entry, entry.pid


def _require_idle(root: int) -> None:
    """RefusedError while another ckpt works on the same group."""
    for work in registry.operations():
        if work.alive and work.kind == "dump" and work.number("task") == root:
            raise RefusedError(
                f"PID {root} cannot be dumped",
                code="group-busy",
                details=f"another ckpt (PID {work.pid}) dumps it now",
                hint="wait until that is done",
            )


def _name_for(root: Process) -> str:
    """What a group is called that nobody has named."""
    return f"{re.sub('[^a-z0-9_.-]+', '-', root.name.lower()).strip('-_.') or 'group'}-{root.pid}"


def _output_path(output: Path | None, name: str, *, force: bool) -> Path:
    path = output or IMAGES / f"{name}.ckpt"
    if output is None:
        IMAGES.mkdir(mode=0o700, parents=True, exist_ok=True)
    # `created` checks this again; but to say it after the freeze would be late.
    if path.is_dir():
        raise ExistsError(f"{path} is a directory", code="image-is-directory", hint="name a file")
    if path.exists() and not force:
        raise ExistsError(f"{path} is there already", code="image-exists", hint="choose another -o, or give --force")
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no directory {path.parent}", code="directory-missing", hint="make it first")
    return path.absolute()


class _Dump:
    """One dump under way: what it works on, and the few things that change while it runs."""

    def __init__(
        self,
        program: criu.Criu,
        facts: GroupFacts,
        entry: registry.GroupEntry | None,
        name: str,
        path: Path,
        options: DumpOptions,
        operation: registry.Operation,
        cleanup: contextlib.ExitStack,
        handover: Handover,
        limit: FreezeLimit,
        progress: Progress | None,
    ) -> None:
        self._program = program
        self._facts = facts
        self._root = facts.root
        self._entry = entry
        self._name = name
        self._path = path
        self._options = options
        self._operation = operation
        self._cleanup = cleanup
        self._handover = handover
        self._limit = limit
        self._progress = progress or (lambda stage, done, total: None)
        self._isolated = facts.isolation is Isolation.NETNS
        self._context = None if self._isolated else context_record.of_process(facts.root)
        self._hold = cleanup.enter_context(SignalHold())
        self._committed = False
        self._covers: tuple[str, ...] = ()
        self._carried = carrying.Carried()
        self._rescue = takedown.Rescue()
        cleanup.callback(self._rescue.close)
        self._frozen_at = 0.0
        self._thawed_at = 0.0

    def run(self, warnings: tuple[str, ...]) -> DumpReport:
        """All of the dump, in order."""
        self._spaces = spaces.opened(self._facts, self._cleanup)
        self._make_directories()
        self._notes = self._take_notes()
        self._turn = Turn(self._cleanup)
        self._lock = self._cleanup.enter_context(self._make_lock())
        try:
            self._run_criu()
        except CkptError as error:
            if not self._committed:
                raise self._rolled_back(error) from error
            # CRIU has ended with its work done: what it was about to do is done here.
            ending.end_tree(self._root, timeout=0)
        self._thawed_at = self._thawed_at or time.monotonic()
        self._limit.end()
        if self._options.leave_running:
            self._lock.release()
            with self._writing() as writing:
                writing.begin(self._checkpoint)
                self._summary = writing.finish(self._carried)
        else:
            self._take_away()
            self._handover.away()
        return self._report(warnings)

    # -- before the freeze ---------------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        """One for CRIU's images, one for its log elsewhere: a full disk is to be told of.

        The images are in memory where there is room, else beside the image of ours. There is one for each connection,
        and ext4 takes longer to make so many files than CRIU to fill them.
        """
        mark = f"criu-{secrets.token_hex(4)}"
        self._images = self._path.with_name(f".{self._path.name}.{mark}")
        self._work = registry.state_dir() / f".{self._operation.id}.{mark}"
        # Also when it is not made: by its name the unfinished image beside it is found.
        noted = [str(self._images), str(self._work)]
        self._operation.note(directories=noted, task=self._root, task_start_time=self._start_time())
        for directory in (self._work,) if self._in_memory() else (self._images, self._work):
            try:
                directory.mkdir(mode=0o700)
            except OSError as error:
                raise StorageError(
                    f"cannot write in {directory.parent}", code="storage-write", details=os.strerror(error.errno or 0)
                ) from error
            self._cleanup.callback(shutil.rmtree, directory, ignore_errors=True)

    def _in_memory(self) -> bool:
        """Have CRIU's images in memory, unless there is little.

        Those of a group that runs on have its memory, too, and the files that travel along, of whatever size; of others
        that goes through pipes, as far as these go.
        """
        if self._options.leave_running and (self._options.with_files or self._options.open_files is OpenFiles.ALL):
            return False
        memory = sum(process.memory.private for process in self._facts.processes)
        directory = tmpfs.in_memory(tmpfs.room_for(memory) + carrying.ALTOGETHER, self._cleanup)
        if directory is None:
            return False
        self._images = directory
        return True

    def _start_time(self) -> int:
        return self._facts.processes[0].start_time

    def _take_notes(self) -> CriuNotes:
        root = self._facts.processes[0]
        mounts = mntns.read_mounts(self._root)
        return CriuNotes(
            netns_key=NETNS_KEY if self._isolated else None,
            mounts=mounts,
            files=mntns.foreign_files(self._facts.processes),
            shell_job=root.ns_sids[-1:] != (root.ns_pid,),
            datagrams=datagrams.outside(self._facts.sockets) if self._isolated else (),
        )

    def _make_lock(self) -> GroupLock:
        if self._isolated:
            return GroupLock([NetworkLock(space.netns) for space in self._spaces])
        own = netns.open_own()
        self._cleanup.callback(os.close, own)
        if self._context is not None:
            record = context_record.read(self._context, self._entry)
            scope = context_record.scope(record, self._facts.sockets)
            self._covers = context_record.covers(scope)
            return GroupLock([NetworkLock(own, scope=scope)])
        return GroupLock([NetworkLock(own, scope=scope_of(self._facts.sockets))])

    def _gate(self) -> None:
        """Let no other dump work here, no new connection in, and none wait that the image could not hold."""
        self._turn.take([one.pid for one in self._facts.processes])
        listeners = None if self._isolated else self._facts.processes
        namespaces = [space.netns for space in self._spaces]
        waiting = settle(self._lock, namespaces, listeners, patient=not self._options.skip_in_flight)
        if waiting and not self._options.skip_in_flight:
            raise RefusedError(
                f"{self._name} cannot be dumped",
                code="socket-accept-queue",
                details=f"{waiting} connections wait to be accepted, and the program does not accept them",
                hint="try again when it is less busy, or drop them with --skip-in-flight",
            )

    # -- frozen --------------------------------------------------------------------------------------------------

    def _run_criu(self) -> None:
        with contextlib.ExitStack() as stack:
            images = stack.enter_context(criu.images_directory(self._images))
            launch = criu.Launch()
            if self._notes.mounts is not None:
                launch = criu.Launch(wrapper=("nsenter", f"--mount=/proc/{self._root}/ns/mnt", "--"))
                if any(mount.kind == "proc" for mount in self._notes.mounts):
                    stack.enter_context(mntns.hosts_proc(self._root))
            places = {"images_dir_fd": images, "work_dir_fd": stack.enter_context(criu.images_directory(self._work))}
            request = criu.dump_request(self._program, {**places, **self._criu_options()})
            self._swrk = stack.enter_context(criu.Swrk(self._program, launch, died=self._rescue))
            self._host = host.read_host(self._swrk.version())
            self._image = stack.enter_context(self._writing())
            # While CRIU starts, before it asks for the first time; it has not looked at the group by then.
            try:
                self._swrk.request(request, self._notify, self._image, meanwhile=self._gate)
            except BaseException:
                self._limit.cancel()
                raise

    def _criu_options(self) -> dict[str, object]:
        external = [file.key for file in self._notes.files]
        external += [f"net[{space.inode}]:{space.key}" for space in self._spaces]
        options: dict[str, object] = {
            "pid": self._root,
            "log_level": 4,
            "log_file": criu.LOG_NAME,
            "external": external,
            "leave_running": self._options.leave_running,
            "network_lock": self._program.rpc.SKIP,
            "tcp_established": True,
            "file_locks": True,
            "ext_unix_sk": True,
            "link_remap": True,
            "ghost_limit": GHOST_LIMIT,
            "shell_job": self._notes.shell_job,
            # The cgroups that the group does not share with CRIU, with their limits; made again if they are gone.
            "manage_cgroups_mode": self._program.rpc.SOFT,
        }
        if self._context is not None:
            # Its cgroup is made by ckpt, and CRIU is run in it.
            options["manage_cgroups_mode"] = self._program.rpc.IGNORE
        if self._options.tcp_close:
            options["tcp_close"] = True
        if self._options.skip_in_flight:
            options["tcp_skip_in_flight"] = True
        return options

    def _notify(self, stage: str, pid: int) -> None:
        _log.info("CRIU: %s", stage)
        if stage == criu.Stage.PRE_DUMP:
            self._frozen_at = time.monotonic()
            self._limit.begin()
            self._handover.frozen()
        elif stage == criu.Stage.QUERY_EXT_FILES:
            # The tasks stand still now, and CRIU has not looked at their sockets yet (cr_dump_tasks, criu/cr-dump.c).
            self._silence()
            processes = proc.read_tree(self._root)
            self._rescue.prepare(processes)
            self._checkpoint = self._read_frozen(processes)
            if not self._options.leave_running:
                self._image.begin(self._checkpoint)
                self._image.await_pages(len(self._checkpoint.processes))
        elif stage == criu.Stage.POST_DUMP:
            self._turn.end()
            # CRIU has what it wants of the connections. Should it be killed from here on, the group runs on at once,
            # and what it does to a socket in repair mode fails.
            self._repaired = takedown.leave_repair(self._checkpoint.processes)
            self._rescue.close()
            self._lock.require_intact()
            if self._options.leave_running:
                self._carried = carrying.spool(self._carried, self._images)
                return
            try:
                # A CRIU that was killed has let the group go on: what was written is not the group any more.
                self._summary = self._image.finish(self._carried, self._swrk.require_alive)
                self._handover.agree()
                self._commit()
            except BaseException:
                if self._image.summary is not None and not self._committed:
                    self._handover.discard(self._path)
                    held.release(self._image.summary.id)
                raise
        elif stage == criu.Stage.NETWORK_UNLOCK:
            # Only where the group goes on; its sockets are about to leave repair mode, and its peers have waited.
            self._reconnect()
            self._lock.release()

    def _silence(self) -> None:
        """Lock the network, and take from sockets what CRIU could not dump."""
        deliver([space.netns for space in self._spaces])
        self._lock.close()
        nested = [one.pid for one in self._facts.nested]
        self._operation.note(lock_tables=list(self._lock.names), netns_pid=self._root, nested_netns_pids=nested)
        _log.info("network locked: %s", ", ".join(self._lock.names))
        self._cleanup.callback(self._reconnect)
        self._operation.note(disconnected=[[one.pid, one.fd, one.path] for one in self._notes.datagrams])
        datagrams.disconnect(self._notes.datagrams)

    def _reconnect(self) -> None:
        if not self._committed:
            datagrams.reconnect(self._notes.datagrams)

    def _commit(self) -> None:
        self._hold.begin()
        self._limit.end()
        self._swrk.require_alive()
        self._operation.note(committed=True, image=str(self._path), netns_names=self._all_netns_names())
        pinned(self._operation, [space.netns for space in self._spaces], self._cleanup)
        # From here on the lock must outlive us: tasks that die without it would be answered for by the kernel.
        self._lock.close(permanent=True)
        self._operation.note(lock_tables=list(self._lock.names))
        if not self._isolated:
            held.hold(self._lock.names, self._path, self._summary.id, self._covers)
        _log.info("%s is written; the group goes", self._path)
        self._swrk.require_alive()
        self._handover.commit(self._checkpoint.processes)
        # ---- point of no return: the image has its name, and the group goes ----
        self._committed = True
        # No FIN and no RST, not even into the lock, and no socket that lingers.
        takedown.enter_repair(self._repaired)
        # CRIU would do it next. But were it killed before, the group would run on for a moment, and what it did then
        # would be in no image.
        for process in self._checkpoint.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        # Nothing is left for it to do. Were we killed now, it would undo its work, take the connections out of repair
        # mode (cpt_unlock_tcp_connections, criu/sk-tcp.c) and be the last to close them: in the host's namespace
        # each would linger in FIN_WAIT1 behind the lock for minutes, where the restored one belongs.
        self._swrk.kill()

    def _read_frozen(self, processes: tuple[Process, ...]) -> Checkpoint:
        """The group as it stands still; what was read before the freeze may have changed since."""
        sockets = sockdiag.read_sockets(processes)
        if self._isolated:
            spaces.require_all(self._spaces, processes, sockets)
        networks = rtnl_group.read_networks({space.key: space.netns for space in self._spaces})
        refuse_blocked(tuple(forecast.left_behind(networks)), f"{self._name} cannot be dumped")
        self._carried = carrying.collect(
            processes, sockets, self._notes, self._options.with_files, self._options.open_files
        )
        return Checkpoint(
            group=self._describe_group(processes[0], sockets),
            source=self._host,
            processes=processes,
            sockets=sockets,
            network=networks.get(NETNS_KEY),
            criu=self._notes,
            nested=spaces.nested_of(self._spaces, networks),
            carried=self._carried.files,
            context=None if self._context is None else context_record.read(self._context, self._entry),
        )

    def _describe_group(self, root: Process, sockets: tuple[Socket, ...]) -> Group:
        connections = 0 if self._options.tcp_close else sum(one.holds_connection for one in sockets)
        return Group(
            name=self._name,
            isolation=self._facts.isolation if self._context is None else Isolation.IPSET,
            root_pid=self._root,
            pid_namespace=self._facts.root_is_init,
            command=self._entry.command if self._entry else root.cmdline,
            log=self._entry.log if self._entry else None,
            netns_names=self._spaces[0].names if self._spaces else (),
            bridge_made=bool(self._entry and self._entry.bridge_made),
            connections=connections,
        )

    def _all_netns_names(self) -> list[str]:
        return [name for space in self._spaces for name in space.names]

    def _writing(self) -> Writing:
        return Writing(
            self._handover,
            self._path,
            self._images,
            force=self._options.force,
            codec=self._options.codec,
            progress=self._progress,
        )

    # -- after ---------------------------------------------------------------------------------------------------

    def _rolled_back(self, error: CkptError) -> CkptError:
        """What to say of a dump that CRIU has undone, or that CRIU's own death ended."""
        if error.code == "criu-died":
            takedown.leave_repair(self._facts.processes)
            link_remaps.remove(link_remaps.find(self._facts.processes))
        self._lock.release()
        if isinstance(error, RefusedError) and not self._frozen_at:
            return error
        if not isinstance(error, criu.CriuError):
            error.details = "\n".join(filter(None, [error.details, f"{self._name} runs on as it was"]))
            return error
        from ckpt.explain import explain

        why = explain(error, self._work, self._operation)
        return RolledBackError(
            f"{self._name} could not be dumped, and runs on", code=why.code, details=why.details, hint=why.hint
        )

    def _take_away(self) -> None:
        """Remove what the killed group had on this host; nothing of it may answer, so the lock goes with the last."""
        # CRIU sends SIGKILL and does not wait; until a task has ended it holds its PID, its files and its namespaces.
        for process in self._checkpoint.processes:
            wait_for_end(process.pid, process.start_time)
        # Explicitly: when its last process has ended a namespace is taken down some time later.
        for space in self._spaces:
            takedown.remove_links(space.netns)
        takedown.unpin(self._all_netns_names())
        if self._context is not None:
            with registry.locked():
                context.release(self._entry) if self._entry else context.discard(self._context.name)
            if not self._path.exists() and not context_record.has_address(self._context):
                # Somebody else has the image and its addresses: there is nothing to be silent about here.
                self._lock.release()
                held.release(self._summary.id)
        self._lock.keep()
        if self._entry is not None:
            registry.remove(self._entry.name, pid=self._entry.pid)

    def _report(self, warnings: tuple[str, ...]) -> DumpReport:
        summary = self._summary
        return DumpReport(
            name=self._name,
            path=self._path,
            image_id=summary.id,
            size=summary.size,
            raw_size=summary.raw,
            frozen_seconds=self._thawed_at - self._frozen_at,
            processes=len(self._checkpoint.processes),
            connections=self._checkpoint.group.connections,
            left_running=self._options.leave_running,
            warnings=(*warnings, *self._carried.warnings),
        )
