"""``ckpt run``: start a group that is made to be dumped."""

from __future__ import annotations

import os

import click

from ckpt.cli import render
from ckpt.cli.options import Bytes, common, require_root, settings
from ckpt.errors import UsageError


@click.command(name="run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--name", metavar="NAME", help="What the group is called.  [default: the command's name and a few digits]"
)
@click.option(
    "--isolation",
    type=click.Choice(["netns", "ipset", "none"]),
    default="netns",
    show_default=True,
    help="A network namespace of its own, or the host's network, confined to its addresses or not.",
)
@click.option(
    "--link",
    metavar="IFNAME",
    help="The bridge to be attached to, made if absent; for macvlan the link below; for ipset where addresses are put.",
)
@click.option(
    "--kind", type=click.Choice(["veth", "macvlan"]), default="veth", show_default=True, help="How it is attached."
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="CIDR",
    help="An address of the group; for ipset also with ports (10.0.0.5:80-89/tcp). May be repeated.",
)
@click.option("--gateway", "gateways", multiple=True, metavar="IP", help="The default gateway, one for each family.")
@click.option("--limit-tasks", type=click.IntRange(min=1), metavar="N", help="ipset: so many tasks at once.")
@click.option("--limit-nice", type=click.IntRange(-20, 19), metavar="N", help="ipset: no better nice value than N.")
@click.option("--limit-data", type=Bytes(), metavar="BYTES", help="ipset: the data of each process.")
@click.option("--limit-memlock", type=Bytes(), metavar="BYTES", help="ipset: locked memory of each process.")
@click.option("--root-may-leave", is_flag=True, help="ipset: run it also where root could leave its context.")
@click.option("--workdir", default="/", show_default=True, metavar="DIR", help="The working directory.")
@click.option(
    "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass on the caller's."
)
@click.option(
    "--clear-env", is_flag=True, help="Start from HOME, LANG and PATH alone, not from the caller's environment."
)
@click.option("--umask", default="022", show_default=True, metavar="OCTAL", help="The file mode creation mask.")
@click.option("--wait", is_flag=True, help="Wait for its end, pass signals on to it, and exit as it does.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARGUMENTS]...")
@common
def command(
    name: str | None,
    isolation: str,
    link: str | None,
    kind: str,
    addresses: tuple[str, ...],
    gateways: tuple[str, ...],
    limit_tasks: int | None,
    limit_nice: int | None,
    limit_data: int | None,
    limit_memlock: int | None,
    root_may_leave: bool,
    workdir: str,
    variables: tuple[str, ...],
    clear_env: bool,
    umask: str,
    wait: bool,
    argv: tuple[str, ...],
) -> None:
    """Start COMMAND as a group that can be dumped.

    It gets PID, IPC, UTS and network namespaces of its own, a session of its own, /dev/null as its standard input
    and a log as its output (see `ckpt logs`). It shares the host's mounts, so its /proc shows the host's PIDs.

    With --isolation ipset it stays in the host's network and has only the addresses that are given, in their order.
    """
    require_root("ckpt run")
    from ckpt.context import SEMANTIC_5
    from ckpt.model.context import Limits
    from ckpt.model.groupspec import GroupSpec, LinkKind
    from ckpt.model.process import Isolation
    from ckpt.registry import GroupEntry
    from ckpt.run import default_name, run_group, start_group

    spec = GroupSpec(
        name=default_name(argv[0]) if name is None else name,
        command=argv,
        isolation=Isolation(isolation),
        link=link,
        kind=LinkKind(kind),
        addresses=addresses,
        gateways=gateways,
        environment=_environment(variables, clear_env),
        workdir=workdir,
        umask=_umask(umask),
        limits=Limits(tasks=limit_tasks, nice=limit_nice, data=limit_data, memlock=limit_memlock),
        root_may_leave=root_may_leave,
    )
    if spec.isolation is Isolation.IPSET:
        render.warn(f"{spec.name}: {SEMANTIC_5}")

    def say(entry: GroupEntry) -> None:
        if settings().json:
            render.emit(entry)
        else:
            click.echo(f"{entry.name}: PID {entry.pid}" + "".join(f", {address}" for address in entry.addresses))

    if not wait:
        say(start_group(spec))
        return
    outcome = run_group(spec, say if settings().verbose or settings().json else lambda _: None)
    if outcome.dumped:
        click.echo(f"ckpt: {spec.name} was dumped away; `ckpt restore` brings it back", err=True)
    click.get_current_context().exit(outcome.status)


def _environment(variables: tuple[str, ...], clear: bool) -> dict[str, str]:
    from ckpt.run import MINIMAL_ENVIRONMENT

    found = dict(MINIMAL_ENVIRONMENT) if clear else dict(os.environ)
    for variable in variables:
        name, given, value = variable.partition("=")
        if not name:
            raise UsageError(f"--env {variable} names no variable", code="env-invalid")
        if given:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _umask(text: str) -> int:
    try:
        mask = int(text, 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0o777:
        raise UsageError(f"--umask {text} is not an octal mode", code="umask-invalid", hint="like 022 or 077")
    return mask
