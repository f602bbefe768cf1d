"""What two ckpts say to each other: one record for each message, and nothing beside them.

The near side asks (`Ps` … `Forget`), the agent answers each question with any number of `Progress` and then with one
result, or with `Failure`. `Restore` is followed by the image as bulk data, `Dump` is answered by it. In a migration
`Ready` and `Verdict` pass in the middle of a `Restore`: what they mean is told in docs/migration.md. Fields have the
types that an image's records may have, so that the image's own schema checks every value that comes in.
"""

from __future__ import annotations

import enum

from ckpt.mapping import NO_MAPPING, Mapping
from ckpt.model.finding import Finding
from ckpt.records import dataclass
from ckpt.registry import GroupEntry

PROTOCOL = 3
"""Changes with every message that an older ckpt would not understand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of either side, the only one that every version understands."""

    protocol: int
    ckpt: str
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ps:
    """Which groups are there? Answered by `Groups`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """A group of a host, with what it does (``running``, ``exited``, or what a ckpt does to it)."""

    entry: GroupEntry
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The groups of a host, by name."""

    groups: tuple[GroupStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """`ckpt clean`. Answered by `Cleaned`."""

    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanedThing:
    """One thing that was found; see `ckpt.clean.CleanAction`."""

    kind: str
    subject: str
    done: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What `ckpt clean` has found."""

    actions: tuple[CleanedThing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`ckpt check` of the host, of the group ``name`` or of the tree below ``pid``. Answered by `Findings`."""

    name: str | None = None
    pid: int | None = None
    criu: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a check has found."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """`ckpt dump` to the near side: answered by the image as data, then, once `Stored` has come, by `Dumped`."""

    name: str | None = None
    pid: int | None = None
    leave_running: bool = False
    tcp_close: bool = False
    skip_in_flight: bool = False
    codec: str = "zstd"
    criu: str | None = None
    with_files: tuple[str, ...] = ()
    open_files: str = "small"
    max_freeze: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The near side has the whole image where it shall be: the group may go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumped:
    """A dump that succeeded; see `ckpt.dump.DumpReport`."""

    name: str
    image_id: str
    size: int
    raw_size: int
    frozen_seconds: float
    processes: int
    connections: int
    left_running: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """`ckpt restore` of the image that follows as data. Answered by `Restored`.

    ``pages`` is how much memory it holds, if that is known. ``keep`` is the file that it is kept in there, too.
    ``migration`` is the id of a move: its group is held before it runs, told by `Ready`, until a `Verdict` comes;
    ``arriving`` says that the group's addresses are still answered for by the group itself. ``patience`` are the
    seconds after which a silent near side is given up, as long as it cannot have committed. ``mapping`` is what is
    called otherwise there.
    """

    label: str
    name: str | None = None
    dry_run: bool = False
    tcp_close: bool = False
    pages: int | None = None
    keep: str | None = None
    migration: str | None = None
    arriving: bool = False
    source: str = ""
    patience: float = 60.0
    criu: str | None = None
    mapping: Mapping = NO_MAPPING
    replace_files: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A restore that succeeded, or the findings of a dry run; see `ckpt.restore.RestoreReport`."""

    name: str
    pid: int = 0
    processes: int = 0
    connections: int = 0
    own_pid_namespace: bool = False
    restore_seconds: float = 0.0
    away_seconds: float = 0.0
    dry_run: bool = False
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much of how much is done, in bytes."""

    stage: str
    done: int
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The group is restored and verified, held, and nothing of it runs."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The word of the source's record: the target lets the group go on, or gives up."""

    migration: str
    go: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The group runs on the target."""


class Standing(enum.StrEnum):
    """What a target has of a migration: holding is the only one of them that a verdict changes."""

    HOLDING = "holding"
    RUNNING = "running"
    GONE = "gone"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquire:
    """To the target: how does this migration stand? What a dead ckpt has left of it is undone. See `Stands`."""

    migration: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stands:
    """How it stands; ``pid`` of the group's root task while it is there."""

    standing: Standing
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decide:
    """To the source: what shall become of this migration, which the target ``holds`` or not? See `Verdict`."""

    migration: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """To either ``role``: the other side has no question left. Answered by `Done`."""

    migration: str
    role: str = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Done, and there is nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failure of what was asked, in the fields of `CkptError`; ``status`` tells its class."""

    brief: str
    code: str
    details: str | None
    hint: str | None
    status: int


Message = (
    Ps
    | Groups
    | Clean
    | Cleaned
    | Check
    | Findings
    | Dump
    | Stored
    | Dumped
    | Restore
    | Restored
    | Progress
    | Ready
    | Verdict
    | Released
    | Inquire
    | Stands
    | Decide
    | Forget
    | Done
    | Failure
    | Hello
)
