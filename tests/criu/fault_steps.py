"""The steps of a dump and of a restore at which the tests let something happen, in their order.

Named as ``fault_runner`` names them. A step that is not passed any more (a function was renamed) fails its test: the
fault then never strikes. ``wide`` steps are only tried with ``scripts/test --faults``: the state on the host is the
same as at one of their neighbours, or nearly so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from tests.criu.fault_lab import Fault

WIDE = os.environ.get("CKPT_FAULTS") == "all"


@dataclass(frozen=True, slots=True)
class Step:
    """A step, whether CRIU is at work meanwhile, and whether it is only tried on request."""

    point: str
    passage: int = 1
    criu: bool = False
    wide: bool = False


def _stage(module: str, stage: str, *, wide: bool = False) -> tuple[Step, Step]:
    """Before and after our answer to CRIU."""
    point = f"{module}._notify[{stage}]"
    return Step(f"call {point}", criu=True, wide=wide), Step(f"return {point}", criu=True)


_DUMP, _RESTORE = "ckpt.dump:_Dump", "ckpt.restore:_Restore"

DUMP = (
    Step("return ckpt.registry:Operation.__enter__"),
    Step("return ckpt.registry:Operation.note"),
    Step(f"call {_DUMP}._take_notes"),
    Step("call ckpt.kernel.lock:_put_in_place", wide=True),
    Step("return ckpt.kernel.lock:_hold"),
    Step(f"return {_DUMP}._silence"),
    Step("return ckpt.kernel.criu:Swrk.__enter__", criu=True),
    *_stage(_DUMP, "pre-dump", wide=True),
    *_stage(_DUMP, "network-lock", wide=True),
    *_stage(_DUMP, "query-ext-files"),
    Step("return ckpt.kernel.criu:Swrk._send", 5, criu=True),
    # CRIU not: the connections are in repair mode until the first thing that ckpt does next; see the random kills.
    Step("return ckpt.kernel.criu_pages:PagePipes.take"),
    Step(f"call {_DUMP}._notify[post-dump]"),
    Step(f"return {_DUMP}._read_frozen", criu=True),
    Step("return ckpt.image.publish>open", 2, criu=True, wide=True),
    Step("return ckpt.image.writer:Writer.section", 3, criu=True),
    Step("call ckpt.image.publish>fsync", criu=True, wide=True),
    Step("call ckpt.image.publish>link", criu=True),
    Step("return ckpt.image.publish>link", criu=True),
    Step("return ckpt.image.publish>unlink", criu=True, wide=True),
    Step(f"call {_DUMP}._commit", criu=True),
    Step("return ckpt.registry:Operation.note", 3, criu=True),
    Step("return ckpt.kernel.lock:_put_in_place", 2, criu=True),
    Step("return ckpt.kernel.lock:NetworkLock.close", 2, criu=True),
    Step(f"return {_DUMP}._commit", criu=True),
    Step("return ckpt.kernel.criu:Swrk._send", 6, criu=True),
    Step(f"return {_DUMP}._run_criu"),
    Step("return ckpt.kernel.takedown:remove_links"),
    Step("return ckpt.kernel.takedown:unpin", wide=True),
    Step("call ckpt.registry:remove", wide=True),
    Step("return ckpt.registry:remove"),
    Step("call ckpt.registry:forget"),
)

LEAVE_RUNNING = (
    Step(f"return {_DUMP}._read_frozen", criu=True),
    *_stage(_DUMP, "network-unlock"),
    Step("return ckpt.kernel.criu:Swrk._send", 7),
    Step(f"return {_DUMP}._run_criu"),
    Step("return ckpt.image.writer:Writer.section", 3),
    Step("return ckpt.image.publish>link"),
)

RESTORE = (
    Step("return ckpt.registry:Operation.__enter__"),
    Step("return ckpt.registry:Operation.note"),
    Step("call ckpt.image.extraction:extract", wide=True),
    Step("return ckpt.image.extraction:_create", 5),
    Step(f"return {_RESTORE}._unpack"),
    Step("call ckpt.kernel.lock:_put_in_place", wide=True),
    Step("return ckpt.kernel.lock:_put_in_place"),
    Step("return ckpt.registry:Operation.note", 2),
    Step("return ckpt.kernel.apply_links:LinkMaker.make_link"),
    Step("return ckpt.kernel.apply_links:LinkMaker.place_counterpart"),
    Step("return ckpt.kernel.apply_links:LinkMaker.adjust_links", wide=True),
    Step("return ckpt.kernel.apply_links:LinkMaker.bring_up", 2, wide=True),
    Step("return ckpt.kernel.apply_routes:RouteMaker.set_addresses"),
    Step("return ckpt.kernel.apply_routes:RouteMaker.set_routes"),
    Step("return ckpt.kernel.apply_routes:RouteMaker.set_neighbours", wide=True),
    Step("return ckpt.kernel.apply:_Applier._settle_sysctls", wide=True),
    Step("return ckpt.rebuild:furnish", criu=True),
    Step(f"return {_RESTORE}._launch", wide=True),
    Step("return ckpt.kernel.criu:Swrk.__enter__", 2, criu=True),
    *_stage(_RESTORE, "pre-restore", wide=True),
    *_stage(_RESTORE, "setup-namespaces"),
    *_stage(_RESTORE, "post-setup-namespaces", wide=True),
    Step("return ckpt.kernel.criu:Swrk._send", 5, criu=True),
    Step("return ckpt.kernel.fuse:Directory._look_up", 3, criu=True, wide=True),
    Step("return ckpt.image.lookup:Lookup.read", criu=True),
    Step(f"call {_RESTORE}._notify[post-restore]", criu=True),
    Step(f"return {_RESTORE}._verify", criu=True),
    Step("return ckpt.registry:add", criu=True),
    Step(f"return {_RESTORE}._notify[post-restore]", criu=True),
    Step("return ckpt.kernel.criu:Swrk._send", 6, criu=True),
    *_stage(_RESTORE, "network-unlock"),
    Step(f"call {_RESTORE}._notify[pre-resume]", criu=True),
    Step(f"call {_RESTORE}._release", criu=True),
    Step("call ckpt.kernel.lock:NetworkLock.release", criu=True),
    Step("return ckpt.kernel.lock:NetworkLock.release", criu=True),
    Step(f"return {_RESTORE}._notify[pre-resume]", criu=True, wide=True),
    Step("return ckpt.kernel.criu:Swrk._send", 8, criu=True),
    *_stage(_RESTORE, "post-resume", wide=True),
    Step(f"return {_RESTORE}._run_criu"),
    Step("return ckpt.kernel.arp:announce"),
    Step("call ckpt.registry:forget"),
)


def faults() -> Iterator[Fault]:
    """Every fault that is tried: ckpt killed at each step, and CRIU or both at each at which CRIU works."""
    for work, steps, arguments in (
        ("dump", DUMP, {}),
        ("dump", LEAVE_RUNNING, {"leave_running": True}),
        ("restore", RESTORE, {}),
    ):
        for victim in ("ckpt", "criu", "both"):
            for step in steps:
                if (step.criu or victim == "ckpt") and (WIDE or not step.wide):
                    yield Fault(work=work, point=step.point, passage=step.passage, fault=victim, arguments=arguments)


# Those that matter most for a group of any kind.
_COMMON_DUMP = (
    Step("call ckpt.image.publish>link", criu=True),
    Step("return ckpt.kernel.lock:NetworkLock.close", 2),
    Step(f"return {_DUMP}._commit", criu=True),
    Step(f"return {_DUMP}._run_criu"),
)
_COMMON_RESTORE = (
    Step("return ckpt.rebuild:furnish", criu=True),
    Step(f"return {_RESTORE}._verify", criu=True),
    Step(f"return {_RESTORE}._notify[post-restore]"),
    Step(f"call {_RESTORE}._release", criu=True),
    Step("return ckpt.kernel.lock:NetworkLock.release"),
)


def common_faults() -> Iterator[Fault]:
    """What is tried with groups of other kinds."""
    for work, steps in (("dump", _COMMON_DUMP), ("restore", _COMMON_RESTORE)):
        for step in steps:
            for victim in ("ckpt", "criu") if step.criu else ("ckpt",):
                yield Fault(work=work, point=step.point, passage=step.passage, fault=victim)
