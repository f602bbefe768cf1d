"""``ckpt context``: the IP-set contexts of this host, and changing the set of one."""

from __future__ import annotations

import click

from ckpt.cli import render
from ckpt.cli.options import common, require_root, settings
from ckpt.errors import UsageError


@click.command(name="context")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--add", "added", multiple=True, metavar="ADDRESS", help="Add an address, behind the others.")
@click.option("--remove", "removed", multiple=True, metavar="ADDRESS", help="Remove an address that is not in use.")
@click.option("--force", is_flag=True, help="Remove it though it is in use; its sockets are aborted.")
@click.option("--enter", "pid", type=int, metavar="PID", help="Put a process and all below it into the context.")
@common
def command(name: str | None, added: tuple[str, ...], removed: tuple[str, ...], force: bool, pid: int | None) -> None:
    """List the contexts of this host; show one with its sockets; or change its set while its group runs.

    Additions and removals of one command happen together or not at all.
    """
    require_root("ckpt context")
    from ckpt import context

    if name is None:
        if added or removed or force or pid is not None:
            raise UsageError("whose set shall change?", code="usage", hint="ckpt context NAME --add ADDRESS")
        reports = context.reports()
        if settings().json:
            render.emit(reports)
            return
        columns = ("NAME", "ADDRESSES", ">TASKS", ">SOCKETS")
        rows = [(one.name, " ".join(one.members), len(one.processes), len(one.sockets)) for one in reports]
        render.table(columns, rows)
        return
    if pid is not None:
        if added or removed:
            raise UsageError("--enter stands alone", code="usage", hint="change the set by a command of its own")
        _enter(name, pid)
        return
    changes = bool(added or removed)
    report = context.change(name, add=added, remove=removed, force=force) if changes else context.report(name)
    if settings().json:
        render.emit(report)
    else:
        _show(report)
    for section in report.missing:
        render.warn(f"the program {section} is not attached: {name} is not confined")
    if report.strayed:
        render.warn(f"PID {', '.join(map(str, report.strayed))} of {name} has left the context: end it")
    for freedom in report.freedoms:
        render.warn(freedom)
    if report.uncovered:
        links = ", ".join(report.uncovered)
        render.warn(
            f"datagrams from {links} reach sockets on * on their first address alone: it has neither tcx nor clsact"
        )


def _enter(name: str, pid: int) -> None:
    from ckpt import context

    entered = context.enter(name, pid)
    if settings().json:
        render.emit(entered)
        return
    click.echo(f"{name} has now PID {', '.join(map(str, entered.processes))} as well")
    if entered.privileged:
        pids = ", ".join(map(str, entered.privileged))
        render.warn(f"PID {pids} may leave again: what a process has of root's it keeps when it is put into a context")
    for one in entered.free:
        render.warn(f"not confined, because it was there before: {one}")


def _show(report: object) -> None:
    from ckpt.context import ContextReport

    assert isinstance(report, ContextReport)
    render.table(("ADDRESS", "ORDER"), [(member, number) for number, member in enumerate(report.members, 1)])
    click.echo()
    rows = [(one.protocol, one.state, one.local, one.remote if one.remote.port else "") for one in report.sockets]
    render.table(("PROTOCOL", "STATE", "LOCAL", "REMOTE"), rows)
