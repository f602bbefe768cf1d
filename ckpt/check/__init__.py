"""Would this group be dumped? The facts of a group in, findings out.

Every reason for which CRIU would refuse, or would restore something else than it dumped, is to be found here, before
anything is frozen, and said together with what the user can do about it. What CRIU takes well is not mentioned. Each
rule was found by trying it: a comment gives CRIU's own words (of 4.2.1, on a 6.18 kernel) where it refuses by itself,
or says what became of the group where it did not. The package is pure: it decides from records alone.
"""

from __future__ import annotations

from ckpt.check.files import GHOST_LIMIT, check_files
from ckpt.check.processes import check_processes, check_root
from ckpt.check.sockets import check_sockets
from ckpt.check.surroundings import check_surroundings
from ckpt.model.finding import Finding
from ckpt.model.process import GroupFacts

__all__ = ["GHOST_LIMIT", "check_dump"]


def check_dump(facts: GroupFacts) -> tuple[Finding, ...]:
    """All findings for a dump of the group. Without one that blocks, it can be dumped."""
    impossible = tuple(check_root(facts))
    if impossible:
        # what else could be said of such a process would only hide the reason
        return impossible
    return (*check_processes(facts), *check_surroundings(facts), *check_files(facts), *check_sockets(facts))
