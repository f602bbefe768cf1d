"""IPVS: the virtual services of a namespace and their real servers, by ``ipvsadm``.

Whether there are any is seen in /proc/net/ip_vs, which is there only when ip_vs is loaded. What connections IPVS has
balanced is in the kernel alone, which takes none from outside; that they are lost is told, and so is a daemon that
synchronizes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.errors import CkptError, NetworkError
from ckpt.kernel.netns import entered
from ckpt.kernel.run import CommandError, run
from ckpt.model.network import Unread

_NET = "/proc/thread-self/net"
_SERVICE_HEADINGS = 3
_CONNECTION_HEADINGS = 1


def read_services(netns: int) -> tuple[tuple[str, ...], tuple[Unread, ...]]:
    """The lines of ``ipvsadm -S -n``, with the servers' thresholds, and what cannot be read or does not travel."""
    unread: list[Unread] = []
    if _lines(netns, "ip_vs") <= _SERVICE_HEADINGS:
        return (), ()
    try:
        saved = run(["ipvsadm", "-S", "-n"], netns=netns).decode("ascii", "surrogateescape").splitlines()
        listed = run(["ipvsadm", "-L", "-n", "--thresholds"], netns=netns).decode("ascii", "surrogateescape")
        daemons = run(["ipvsadm", "-L", "--daemon"], netns=netns).decode("ascii", "replace").strip()
    except CkptError as error:
        what = f"are set, and cannot be read: {error.brief}"
        return (), (Unread(code="ipvs", subject="IPVS services", what=what),)
    connections = _lines(netns, "ip_vs_conn") - _CONNECTION_HEADINGS
    if connections > 0:
        what = f"{connections} are balanced, and will be balanced anew"
        unread.append(Unread(code="ipvs-connections", subject="IPVS connections", what=what))
    if daemons:
        unread.append(Unread(code="ipvs-daemon", subject="IPVS synchronization", what=f"runs: {daemons}"))
    return with_thresholds(saved, listed), tuple(unread)


_SERVICES = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service", "FWM": "-f"}


def with_thresholds(saved: Sequence[str], listed: str) -> tuple[str, ...]:
    """The ``saved`` lines, where servers have the thresholds that only the list of these shows."""
    thresholds: dict[tuple[str, str, str], str] = {}
    service = ("", "")
    for words in map(str.split, listed.splitlines()):
        if words and words[0] in _SERVICES:
            service = (_SERVICES[words[0]], words[1])
        elif words[:1] == ["->"] and len(words) >= 4 and words[2:4] != ["0", "0"]:
            thresholds[*service, words[1]] = f" -x {words[2]} -y {words[3]}"
    found = []
    for line in saved:
        words = line.split()
        key = (words[1], words[2], words[words.index("-r") + 1]) if words[:1] == ["-a"] and "-r" in words else None
        found.append(line + (thresholds.get(key, "") if key else ""))
    return tuple(found)


def _lines(netns: int, file: str) -> int:
    try:
        with entered(netns), open(f"{_NET}/{file}", encoding="ascii", errors="replace") as content:
            return sum(1 for _ in content)
    except OSError:
        return 0  # there is no IPVS


def load_services(netns: int, lines: Sequence[str]) -> None:
    """Make the services and servers again. Raises NetworkError with the tool's own words."""
    if not lines:
        return
    try:
        run(["ipvsadm", "-R"], input="".join(f"{line}\n" for line in lines).encode(), netns=netns)
    except CommandError as error:
        raise NetworkError(
            "cannot make the IPVS services",
            code="ipvs-load",
            details=error.details,
            hint="the kernel here needs ip_vs and the schedulers that the services name",
        ) from error
