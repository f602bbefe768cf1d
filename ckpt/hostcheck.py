"""``ckpt check`` of the host itself: is there here what a dump and a restore need?

Each thing is tried, not guessed from versions, and becomes one finding with its remedy. Nothing is changed; what is
made to try it lives in a namespace that is thrown away.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator

from ckpt.context import SEMANTIC_5
from ckpt.errors import CkptError
from ckpt.kernel import context_bounds, context_probe, criu, netns, probe
from ckpt.kernel.run import run
from ckpt.model.finding import Finding, Severity

_TOOLS = {"tini": "tini", "nft": "nftables"}

_LINK_KINDS = ("veth", "bridge", "macvlan")

# CRIU does without it, but cannot raise its limit of open files.
_DISPENSABLE = ("CAP_SYS_RESOURCE", "CAP_CHECKPOINT_RESTORE")


def check_host(criu_path: str | None = None) -> tuple[Finding, ...]:
    """What works on this host, and what does not."""
    if os.geteuid() != 0:
        return (_block("root", "user", f"the user id is {os.geteuid()}", "run ckpt as root"),)
    found = [_ok("root", "user", "root")]
    for check in (_capabilities(), _kernel(), _namespaces(), _tools(), _criu(criu_path), _contexts()):
        found += check
    return tuple(found)


def _capabilities() -> Iterator[Finding]:
    missing = probe.missing_capabilities()
    for name in missing:
        remedy = "give the container or service that ckpt runs in this capability"
        severity = Severity.WARN if name in _DISPENSABLE else Severity.BLOCK
        yield Finding(severity=severity, code="capability", subject=name, reason="missing", remedy=remedy)
    if not missing:
        yield _ok("capability", "capabilities", "all there")


def _kernel() -> Iterator[Finding]:
    release = f"Linux {platform.release()}"
    if probe.has_checkpoint_restore():
        yield _ok("kernel-checkpoint", release, "built with CONFIG_CHECKPOINT_RESTORE")
    else:
        yield _block(
            "kernel-checkpoint", release, "built without CONFIG_CHECKPOINT_RESTORE", "boot a distribution's kernel"
        )


def _namespaces() -> Iterator[Finding]:
    try:
        missing = probe.missing_link_kinds(_LINK_KINDS)
    except CkptError as error:
        yield _block("kernel-netns", "network namespaces", str(error), error.hint or "")
        return
    for kind in _LINK_KINDS:
        if kind not in missing:
            yield _ok("kernel-link", f"links of kind {kind}", "work")
            continue
        yield Finding(
            severity=Severity.WARN if kind == "macvlan" else Severity.BLOCK,
            code="kernel-link",
            subject=f"links of kind {kind}",
            reason="unknown to the kernel",
            remedy=f"modprobe {kind}, or boot a kernel that has it",
        )


def _tools() -> Iterator[Finding]:
    for tool, package in _TOOLS.items():
        path = shutil.which(tool)
        if path is None:
            yield _block("tool-missing", tool, "not installed", f"apt-get install {package}")
        else:
            yield _ok("tool", tool, path)
    if shutil.which("nft"):
        yield _nftables()


def _nftables() -> Finding:
    namespace = netns.create()
    try:
        run(["nft", "add", "table", "inet", "ckpt-check"], netns=namespace)
    except CkptError as error:
        return _block(
            "kernel-nftables", "nftables", error.details or error.brief, "boot a kernel with CONFIG_NF_TABLES"
        )
    finally:
        os.close(namespace)
    return _ok("kernel-nftables", "nftables", "works")


def _criu(path: str | None) -> Iterator[Finding]:
    install = "scripts/install-criu finds one that works here"
    try:
        found = criu.find(path)
        version = ".".join(map(str, criu.version(found)))
        criu.require_lock_skip(found)
    except CkptError as error:
        yield _block(error.code, "CRIU", str(error), error.hint or install)
        return
    yield _ok("criu", "CRIU", f"{version}, {found.path}")
    try:
        run([found.path, "--no-default-config", "check"])
    except CkptError as error:
        yield _block("criu-check", "criu check", _last_line(error.details) or error.brief, install)
    else:
        yield _ok("criu-check", "criu check", "looks good")


def _contexts() -> Iterator[Finding]:
    """Contexts are dispensable: what they lack is a warning."""
    missing = [one for one in context_probe.features() if one.failure is not None]
    for one in missing:
        effect = "" if one.needed else "; datagrams reach sockets on * on their first address alone"
        yield Finding(
            severity=Severity.WARN,
            code="context",
            subject=f"IP-set contexts: {one.name}",
            reason=f"{one.failure}{effect}",
            remedy=f"boot Linux {one.since} or later, with CONFIG_CGROUP_BPF",
        )
    if not any(one.needed for one in missing):
        yield _ok("context", "IP-set contexts", f"work; {SEMANTIC_5}")
        for freedom in context_bounds.freedoms(tasks=True):
            yield Finding(
                severity=Severity.WARN,
                code="context-delegation",
                subject="IP-set contexts",
                reason=f"{freedom.reason}; `ckpt run` refuses that without --root-may-leave",
                remedy=freedom.remedy,
            )


def _last_line(text: str | None) -> str:
    return (text or "").strip().rpartition("\n")[2]


def _ok(code: str, subject: str, reason: str) -> Finding:
    return Finding(severity=Severity.OK, code=code, subject=subject, reason=reason)


def _block(code: str, subject: str, reason: str, remedy: str) -> Finding:
    return Finding(severity=Severity.BLOCK, code=code, subject=subject, reason=reason, remedy=remedy)
