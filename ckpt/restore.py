"""`ckpt restore`: a group comes back from its file, with its network and its connections.

The image's sections say what the group needs; that is held against this host, and what blocks is refused before
anything is touched. Then a network namespace is made and locked *before* its first address is there, so that a peer
that retransmits meets silence and never a kernel without the socket. CRIU restores into it and, with everything in
place and nothing running, asks whether to go on: the tasks and every socket are held against the image, and the group
is written down. When CRIU says that it is about to resume the tasks, the lock goes: that is the point of no return.
Then the addresses are announced.

Whatever fails before that point is answered with no: CRIU kills what it restored, silently, the namespace goes with
our descriptor of it, and what was made on the host is undone. The image is only ever read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ckpt import context_findings, context_restore, held, placing, registry, sections, unpacking
from ckpt.errors import CkptError, ImageError, RestoreError, UnknownOutcomeError
from ckpt.handover import Arrival, Progress
from ckpt.holding import SignalHold
from ckpt.image import Reader
from ckpt.image.frames import Readable
from ckpt.incoming import ImageSource, StreamedImage
from ckpt.kernel import (
    adopter,
    arp,
    criu,
    criu_images,
    datagrams,
    host,
    mntns,
    netns,
    proc,
    repeating,
    sockdiag,
)
from ckpt.kernel.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from ckpt.mapping import NO_MAPPING, Mapping
from ckpt.model.checkpoint import Checkpoint, InheritedFile
from ckpt.model.finding import Finding, refuse_blocked
from ckpt.model.host import KnownGroup
from ckpt.model.process import FileKind
from ckpt.orphans import are_pids_taken, killed_on_failure
from ckpt.placed import Journal
from ckpt.places import IMAGES
from ckpt.rebuild import Home, furnish, rebuild
from ckpt.records import dataclass
from ckpt.remap import Remapped, remap
from ckpt.revalidate import needs_of, revalidate
from ckpt.revalidate.context import Placing, check_answers, on_host, with_places
from ckpt.verify import compare, misplaced

_log = logging.getLogger(__name__)

ANNOUNCE_AFTER = (0.05, 0.15, 0.3, 0.5)
"""Seconds after the first announcement at which addresses are announced again: any one of them may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """A restore that succeeded, or with ``dry_run`` the findings alone. ``away_seconds`` since the image was made."""

    name: str
    pid: int = 0
    processes: int = 0
    connections: int = 0
    own_pid_namespace: bool = False
    restore_seconds: float = 0.0
    away_seconds: float = 0.0
    dry_run: bool = False
    findings: tuple[Finding, ...] = ()
    backups: tuple[Path, ...] = ()


def restore_group(
    image: Path,
    *,
    name: str | None = None,
    dry_run: bool = False,
    tcp_close: bool = False,
    mapping: Mapping = NO_MAPPING,
    replace_files: bool = False,
    criu_path: str | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Restore the group in ``image`` on this host, under ``name`` or the one it had.

    ``mapping`` says what is called otherwise here. With ``tcp_close`` no connection with others is restored, and with
    ``replace_files`` files of this host make way for the image's.
    Raises ImageError when the image is not whole, RefusedError when this host lacks what it needs (nothing was
    touched), RestoreError when the restore failed and was undone.
    """
    with Reader(image, known=sections.KNOWN) as reader:
        pages = sum(file.length for file in reader.files.values() if file.name.startswith("pages-"))
        asked = _Asked(
            name=name,
            dry_run=dry_run,
            tcp_close=tcp_close,
            mapping=mapping,
            replace_files=replace_files,
            pages=pages,
            criu_path=criu_path,
        )
        return _restore(reader, image.absolute(), asked, Arrival(), progress)


def restore_stream(
    stream: Readable,
    label: str,
    *,
    name: str | None = None,
    dry_run: bool = False,
    tcp_close: bool = False,
    mapping: Mapping = NO_MAPPING,
    replace_files: bool = False,
    pages: int | None = None,
    size: int = 0,
    keep: Path | None = None,
    criu_path: str | None = None,
    arrival: Arrival | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Restore as `restore_group` does, but from an image that ``stream`` brings; it is read no further than needed.

    ``label`` names it in messages. ``size`` and ``pages`` are what is known of the length of all and of the memory in
    it, ``keep`` is a new file that it shall lie in as well. ``arrival`` is asked before the group runs, where another
    side has a say in that.
    """
    image = StreamedImage(stream, label, known=sections.KNOWN, size=size, keep=keep)
    with image:
        asked = _Asked(
            name=name,
            dry_run=dry_run,
            tcp_close=tcp_close,
            mapping=mapping,
            replace_files=replace_files,
            pages=pages,
            criu_path=criu_path,
        )
        return _restore(image, Path(label), asked, arrival or Arrival(), progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the caller of either wants."""

    name: str | None
    dry_run: bool
    tcp_close: bool
    mapping: Mapping
    replace_files: bool
    pages: int | None
    criu_path: str | None


def _restore(
    source: ImageSource, image: Path, asked: _Asked, arrival: Arrival, progress: Progress | None
) -> RestoreReport:
    program = criu.find(asked.criu_path)
    # It takes as long as all that is done meanwhile.
    with ThreadPoolExecutor(1, "ckpt-criu-version") as pool:
        version = pool.submit(criu.version, program)
        checkpoint = sections.read(source)
        remapped = remap(checkpoint, asked.mapping, tcp_close=asked.tcp_close)
        name = asked.name or remapped.checkpoint.group.name
    found = examine(
        remapped.checkpoint,
        version.result(),
        name,
        pages=asked.pages,
        made=source.header.created,
        held_by=macs_of(checkpoint) if arrival.moves else frozenset(),
        probe=asked.dry_run or not arrival.moves,
        try_kernel=asked.dry_run,
        replace_files=asked.replace_files,
        beside=None if unpacking.serves(source) else image.parent,
    )
    findings = (*remapped.findings, *found)
    if asked.dry_run:
        return RestoreReport(name=name, dry_run=True, findings=findings)
    refuse_blocked(findings, f"{image} cannot be restored here")
    with registry.Operation("restore", name) as operation, contextlib.ExitStack() as undo:
        restore = _Restore(program, source, image, remapped, name, asked, operation, undo, arrival)
        return restore.run(progress or (lambda stage, done, total: None), findings)


def examine(
    checkpoint: Checkpoint,
    version: criu.Version,
    name: str,
    *,
    tcp_close: bool = False,
    pages: int | None = None,
    made: float | None = None,
    held_by: Collection[str] = (),
    probe: bool = True,
    try_kernel: bool = True,
    beside: Path | None = IMAGES,
    replace_files: bool = False,
) -> tuple[Finding, ...]:
    """What is to be said of restoring ``checkpoint`` on this host, by the CRIU of that ``version``; changes nothing.

    ``held_by`` are the MACs of a group that still has its addresses elsewhere: that it answers for them is as it should
    be.
    Without ``probe`` nobody is asked for addresses: it was done a moment ago, and the group stands still meanwhile.
    Unless ``try_kernel``, what only a context needs of the kernel is not tried: making it says so as well.
    ``beside`` is a directory that it may be unpacked in; None where memory need not be.
    """
    groups = tuple(_known(entry) for entry in registry.entries())
    coming = Placing()
    if checkpoint.context is not None:
        coming = context_restore.placing(checkpoint.context)
    confining = tuple(context_findings.here(checkpoint, try_kernel=try_kernel))
    checkpoint = on_host(checkpoint)
    needs = needs_of(checkpoint)
    needs = dataclasses.replace(needs, probes=(*needs.probes, *coming.probes))
    if not probe:
        needs = dataclasses.replace(needs, probes=(), gateways=())
    scratch = (beside, IMAGES, Path(tempfile.gettempdir()), registry.state_dir()) if beside else ()
    target = host.read_target(needs, version, groups=groups, scratch=scratch)
    seen = with_places(target, coming)
    found = revalidate(
        checkpoint,
        seen,
        name=name,
        tcp_close=tcp_close,
        pages=pages,
        made=made,
        held_by=held_by,
        replace_files=replace_files,
    )
    found = (*found, *coming.findings, *check_answers(coming, target, held_by), *confining)
    return tuple(one for one in found if probe or one.code != "gateway-silent")


def macs_of(checkpoint: Checkpoint) -> frozenset[str]:
    """The MACs by which the group is answered for, where it is."""
    own = {link.mac for network in checkpoint.networks.values() for link in network.links if link.mac}
    return frozenset(own | {one.mac for one in (checkpoint.context.places if checkpoint.context else ()) if one.mac})


def _known(entry: registry.GroupEntry) -> KnownGroup:
    return KnownGroup(
        name=entry.name,
        pid=entry.pid,
        alive=entry.alive,
        addresses=entry.addresses,
        links=tuple(filter(None, (entry.bridge, entry.parent))),
    )


class _Restore:
    """One restore under way: what it works on, and the few things that change while it runs."""

    def __init__(
        self,
        program: criu.Criu,
        reader: ImageSource,
        image: Path,
        remapped: Remapped,
        name: str,
        asked: _Asked,
        operation: registry.Operation,
        undo: contextlib.ExitStack,
        arrival: Arrival,
    ) -> None:
        self._program = program
        self._reader = reader
        self._image = image
        self._remapped = remapped
        self._checkpoint = remapped.checkpoint
        self._name = name
        self._tcp_close = asked.tcp_close
        self._pages = asked.pages
        self._replace_files = asked.replace_files
        self._operation = operation
        self._undo = undo
        self._arrival = arrival
        self._journal = Journal(name)
        self._root = 0
        self._released = False

    def run(self, progress: Progress, findings: tuple[Finding, ...]) -> RestoreReport:
        """All of the restore, in order."""
        began = time.monotonic()
        # The undo comes first: what it removes must be gone when the namespaces are let go.
        with contextlib.ExitStack() as passing, self._undo:
            self._operation.note(image_id=self._reader.header.id)
            if self._arrival.moves:
                # The source has frozen the group already and is writing its memory.
                self._move_in(passing)
            self._files = self._unpack(progress, passing)
            images = self._files.directory
            try:
                self._backups = placing.place(
                    self._checkpoint,
                    images,
                    self._undo,
                    self._journal,
                    replace=self._replace_files,
                )
                self._amend(images)
                with SignalHold() as self._hold:
                    if not self._arrival.moves:
                        self._home = self._make_home(passing)
                    self._run_criu(passing)
            except (UnknownOutcomeError, ImageError):
                # Of an image that is damaged there is nothing else to say: what was made of it is gone.
                raise
            except CkptError as error:
                if not self._released:
                    raise self._undone(error) from error
                # CRIU died when all was done but its farewell: the tasks run.
            self._announce()
        return self._report(began, findings)

    # -- before CRIU ---------------------------------------------------------------------------------------------

    def _move_in(self, passing: contextlib.ExitStack) -> None:
        """Make the home of the group with all that is in it, before there is anything of the group."""
        try:
            self._home = self._make_home(passing)
            self._furnish()
        except CkptError as error:
            raise self._undone(error) from error

    def _furnish(self) -> None:
        furnish(self._home, self._checkpoint, self._operation, self._undo)

    def _make_home(self, passing: contextlib.ExitStack) -> Home:
        if self._checkpoint.context is not None:
            return context_restore.confine(
                self._program,
                self._checkpoint,
                self._name,
                self._operation,
                passing,
                self._undo,
                mute=self._arrival.moves,
            )
        return rebuild(self._checkpoint, self._operation, passing, self._undo, mute=self._arrival.moves)

    def _unpack(self, progress: Progress, passing: contextlib.ExitStack) -> unpacking.Unpacking:
        return unpacking.Unpacking(
            self._reader,
            self._image,
            self._operation,
            passing,
            memory=self._pages,
            carried=sum(one.size for one in self._checkpoint.carried if one.member),
            read=lambda done, total: progress("reading", done, total),
        )

    def _amend(self, images: Path) -> None:
        """Put right what CRIU has dumped but would restore wrongly; see each amendment."""
        files = [file for process in self._checkpoint.processes for file in process.files]
        if any(file.path == "timerfd" for file in files):
            criu_images.amend(self._program, images / criu_images.FILES, criu_images.rearm_timer)
        if self._remapped.renames_sockets:
            criu_images.amend(self._program, images / criu_images.FILES, self._remapped.renaming())
        if any(file.kind is FileKind.REGULAR and file.flags & os.O_APPEND and file.flags & os.O_RDWR for file in files):
            criu_images.amend(self._program, images / criu_images.FILES, criu_images.accept_growth)

    # -- CRIU ----------------------------------------------------------------------------------------------------

    def _run_criu(self, passing: contextlib.ExitStack) -> None:
        with self._files.opened() as (directory, work):
            self._converse(directory, work, passing)

    def _converse(self, directory: int, work: int, passing: contextlib.ExitStack) -> None:
        launch = self._launch(passing, directory, work)
        options: dict[str, object] = {
            # Not by our descriptor: in a PID namespace of its own CRIU cannot see our /proc/PID/fd. And by a link: a
            # CRIU before 4.2 reads where the name leads ("Can't readlink", criu/cr-service.c).
            "images_dir_fd": -1,
            "images_dir": f"/proc/self/fd/{directory}",
            "log_level": 4,
            "log_file": criu.LOG_NAME,
            # Connections that shall be closed are so already in the images: this would close every one. Of images
            # that were dumped without connections CRIU wants to hear it again.
            "tcp_close": self._tcp_close and not self._remapped.connections,
            "tcp_established": True,
            "file_locks": True,
            "ext_unix_sk": True,
            "link_remap": True,
            "orphan_pts_master": True,
            # Its root was in a session that others led; it joins the one that CRIU runs in.
            "shell_job": self._checkpoint.criu.shell_job,
            # What is open by path is open already; CRIU would refuse it when its mode was changed meanwhile.
            "skip_file_rwx_check": True,
            "manage_cgroups_mode": self._program.rpc.IGNORE if self._confined else self._program.rpc.SOFT,
            "inherit_fd": self._inherited,
        }
        request = criu.restore_request(self._program, options)
        with killed_on_failure(lambda: self._released), criu.Swrk(self._program, launch) as swrk:
            # While CRIU starts and reads what it is to restore, which is a third of what it takes for a small group.
            swrk.request(
                request,
                lambda stage, pid: self._notify(swrk, stage, pid),
                meanwhile=None if self._arrival.moves else self._furnish,
            )

    def _launch(self, passing: contextlib.ExitStack, images: int, work: int) -> criu.Launch:
        """What CRIU inherits and runs in: the namespaces of the group that are not in its images."""
        notes = self._checkpoint.criu
        self._inherited: list[dict[str, object]] = []
        self._inherited += [{"key": room.key, "fd": room.netns} for room in self._home.rooms]
        for file in notes.files:
            self._inherited.append({"key": file.key, "fd": passing.enter_context(_opened(file))})
        passed = [images, work, *(int(str(one["fd"])) for one in self._inherited)]
        wrapper: list[str] = list(self._confined.wrapper) if self._confined else []
        if notes.mounts is not None:
            mounts = mntns.create(notes.mounts, self._home.netns)
            passing.callback(os.close, mounts)
            passed.append(mounts)
            wrapper += ["nsenter", f"--mount=/proc/self/fd/{mounts}", "--"]
        self._adopted = not self._checkpoint.group.pid_namespace and are_pids_taken(self._checkpoint.processes)
        if self._adopted:
            wrapper += ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "--propagation", "slave", "--"]
            inside = "-" if self._home.netns is None else str(self._home.netns)
            wrapper += [sys.executable, "-I", "-S", adopter.__file__, inside]
        return criu.Launch(
            pass_fds=tuple(passed),
            wrapper=tuple(wrapper),
            work_dir=f"/proc/self/fd/{work}",
            wrapper_lingers=self._adopted,
        )

    def _notify(self, swrk: criu.Swrk, stage: str, pid: int) -> None:
        _log.info("CRIU: %s", stage)
        if stage == criu.Stage.POST_RESTORE:
            self._root = proc.children(swrk.pid)[0] if self._adopted else pid
            for mount in self._checkpoint.criu.mounts or ():
                if mount.kind == "proc" and not self._adopted:
                    mntns.mount_proc(self._root, mount.target)
            self._verify()
            self._write_down()
            if self._arrival.moves:
                # From here on another decides whether the group runs here, and not a signal.
                self._hold.begin()
            self._arrival.hold(self._root, registry.start_time(self._root) or 0)
        elif stage == criu.Stage.PRE_RESUME:
            # From here on the tasks need neither CRIU nor us: whoever finds them later leaves them to themselves.
            self._operation.note(resumes=True)
            self._journal.end()
            swrk.require_alive()
            self._arrival.running()
            self._release()
            self._arrival.released()

    @property
    def _confined(self) -> context_restore.ConfinedHome | None:
        return self._home if isinstance(self._home, context_restore.ConfinedHome) else None

    def _release(self) -> None:
        """Let the group go.

        Not earlier: until now the tasks die with a CRIU that dies, and without the lock the kernel would answer for
        them. From pre-resume on they stand before their last step, and go on without CRIU (criu/cr-restore.c).
        """
        self._hold.begin()
        # What there would be to undo on the host is the group's now, and so are the tasks.
        self._undo.pop_all()
        prctl(PR_SET_CHILD_SUBREAPER, 0)
        self._released = True
        # ---- point of no return: packets pass, and CRIU lets the tasks run whatever is answered ----
        try:
            held.release(self._reader.header.id)
            if self._confined:
                held.give_way(self._confined.covers)
            self._home.lock.release()
        except CkptError as error:
            raise UnknownOutcomeError(
                f"{self._name} runs as PID {self._root}, but its network could not be unlocked",
                code="unlock-failed",
                details=str(error),
                hint="`ckpt clean` takes the lock away",
            ) from error
        _log.info("%d sockets are where the image says; the network is unlocked", len(self._checkpoint.sockets))

    def _verify(self) -> None:
        """Hold what CRIU restored against the image: every task, and every socket where the image says it was."""
        wanted = {one.ns_pid for one in self._checkpoint.processes}
        restored = [one for one in proc.read_tree(self._root) if one.ns_pid in wanted]
        live = sockdiag.read_sockets(restored)
        missing = wanted - {one.ns_pid for one in restored}
        wrong = [f"the process {pid} is missing" for pid in sorted(missing)]
        renumbered = self._home.renumbered
        wrong += misplaced(self._checkpoint.processes, restored, renumbered)
        wrong += compare(self._checkpoint.sockets, live, renumbered)
        if wrong:
            raise RestoreError(
                "what CRIU restored is not what the image holds", code="restore-differs", details="\n".join(wrong)
            )
        if self._confined:
            context_restore.settle(self._confined, self._checkpoint, restored, live)
        pids = {one.ns_pid: one.pid for one in restored}
        unconnected = self._checkpoint.criu.datagrams
        missing_names = datagrams.reconnect([dataclasses.replace(one, pid=pids[one.ns_pid]) for one in unconnected])
        for path in missing_names:
            _log.warning("nobody listens at %s, which the group sent to", path)

    def _write_down(self) -> None:
        group, home = self._checkpoint.group, self._home
        entry = registry.GroupEntry(
            name=self._name,
            pid=self._root,
            start_time=registry.start_time(self._root) or 0,
            isolation=group.isolation.value,
            netns=netns.inode(home.netns) if home.netns is not None else None,
            links=home.outside_links,
            bridge=home.bridge,
            bridge_made=group.bridge_made,
            parent=home.parent,
            addresses=home.addresses,
            context=self._confined.context.name if self._confined else None,
            given=self._confined.given if self._confined else (),
            root_may_leave=self._checkpoint.context is not None and self._checkpoint.context.root_may_leave,
            log=group.log,
            command=group.command,
            restored_from=str(self._image),
        )
        self._operation.note(restored=entry.pid, restored_start_time=entry.start_time)
        self._undo.callback(registry.remove, self._name, pid=self._root)
        registry.add(entry)

    # -- after ---------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        if not self._home.rooms and not self._confined:
            return
        self._tell()
        spaces = [room.netns for room in self._home.rooms]
        try:
            with contextlib.suppress(ProcessLookupError):
                repeating.repeat(self._tell, ANNOUNCE_AFTER, pid=self._root, keep=spaces)
        except OSError as error:
            _log.warning("addresses are announced only once: %s", error.strerror)

    def _tell(self) -> None:
        if self._confined:
            context_restore.announce(self._confined)
        for room in self._home.rooms:
            arp.announce(room.netns, room.network)

    def _undone(self, error: CkptError) -> CkptError:
        brief = f"{self._name} could not be restored; nothing of it was left, the image is as it was"
        if isinstance(error, criu.CriuError):
            from ckpt.explain import explain

            why = explain(error, self._files.directory, self._operation)
            return RestoreError(brief, code=why.code, details=why.details, hint=why.hint)
        return RestoreError(brief, code=error.code, details=str(error), hint=error.hint)

    def _report(self, began: float, findings: tuple[Finding, ...]) -> RestoreReport:
        return RestoreReport(
            name=self._name,
            pid=self._root,
            processes=len(self._checkpoint.processes),
            connections=self._remapped.connections,
            own_pid_namespace=self._adopted,
            restore_seconds=time.monotonic() - began,
            away_seconds=time.time() - self._reader.header.created,
            findings=findings,
            backups=self._backups,
        )


@contextlib.contextmanager
def _opened(file: InheritedFile) -> Iterator[int]:
    """A file that CRIU could not find by itself, as it was open."""
    try:
        fd = os.open(file.path, file.flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC) | os.O_CLOEXEC)
        if file.position and not file.flags & os.O_APPEND:
            os.lseek(fd, file.position, os.SEEK_SET)
    except OSError as error:
        raise RestoreError(
            f"cannot open {file.path}, which the group had open",
            code="file-open",
            details=os.strerror(error.errno or 0),
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)
