"""What is typed: ``vagrant/lab COMMAND …``. Each command is a function; this module alone prints and exits."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vmlab import image, seed
from vmlab.lab import MEMORY, Lab
from vmlab.machine import accelerator
from vmlab.places import HERE, LabError, addresses, default_lab

USAGE = """\
  up [HOST[=IMAGE]…]          turn machines on, all of them if none is named; IMAGE is trixie, bookworm or one of these
                              with -systemd ($CKPT_VM_IMAGE, trixie); IMAGE@CPU is one with that processor
  ssh HOST [COMMAND…]         a shell in a machine, or a command of one
  run HOST COMMAND…           bring the checkout there and run a command in it, with ckpt's Python first on PATH
  sync [HOST…]                bring the checkout there
  off | boot | reset HOST     take its power away; turn it on again, with its disk as it was; press its button
  cut | mend HOST             pull its cable; put it in again
  status                      which machines there are
  down                        end all of it
  with [HOST[=IMAGE]…] -- COMMAND…
                              a lab of its own for one command, which finds it in the environment; it ends with it
  build [IMAGE…] [--again]    make images that are not there yet; --again: with what the archive has now
"""


def say(text: str) -> None:
    """To whoever sits there; standard output is the commands'."""
    print(f"lab: {text}", file=sys.stderr)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="vagrant/lab",
        usage="%(prog)s [--lab DIR] COMMAND …",
        epilog=USAGE,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--lab", type=Path, default=default_lab(), help="its directory, $CKPT_LAB, or this checkout's own"
    )
    parser.add_argument("--memory", type=int, default=MEMORY, help="of machines that are made, in MiB (%(default)s)")
    parser.add_argument("--cpu", default="max", help="of machines that are made, in QEMU's words (%(default)s)")
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("words", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    try:
        return COMMANDS[asked.command](Lab(asked.lab), asked.words, asked)
    except LabError as error:
        say(f"error: {error.args[0]}")
        for line in error.args[1:]:
            print(f"  | {line}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        say(f"error: {error}")
        return 1
    except subprocess.TimeoutExpired as error:
        say(f"error: {shlex.join(map(str, error.cmd))} has not ended within {error.timeout:.0f} s")
        return 1
    except KeyboardInterrupt:
        return 130


def _wanted(words: list[str]) -> dict[str, str]:
    default = os.environ.get("CKPT_VM_IMAGE") or "trixie"
    split = (word.partition("=") for word in words or addresses())
    return {name: which or default for name, _, which in split}


def _up(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    began = time.monotonic()
    wanted = _wanted(words)
    for which in {one.partition("@")[0] for one in wanted.values()}:
        image.ready(which)
    lab.begin()
    lab.boot(wanted, memory=asked.memory, cpu=asked.cpu)
    said = ", ".join(f"{name} ({which})" for name, which in wanted.items())
    say(f"{said}: up after {time.monotonic() - began:.1f} s, by {accelerator()}")
    return 0


def _with(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    if "--" not in words:
        raise LabError("`lab with [HOST…] -- COMMAND…` needs the --")
    at = words.index("--")
    wanted, command = _wanted(words[:at]), words[at + 1 :]
    for which in {one.partition("@")[0] for one in wanted.values()}:
        image.ready(which)
    own = Lab(Path(tempfile.mkdtemp(prefix="ckpt-lab-", dir="/var/tmp")))
    with own.bound():
        began = time.monotonic()
        own.boot(wanted, memory=asked.memory, cpu=asked.cpu)
        say(f"{', '.join(wanted)}: up after {time.monotonic() - began:.1f} s, by {accelerator()}")
        found = {
            "CKPT_LAB": str(own.place),
            "CKPT_VM_HOSTS": " ".join(wanted),
            "CKPT_VM_SSH_CONFIG": str(own.ssh_config),
            "CKPT_VM_POWER": f"{HERE / 'lab'} --lab {own.place}",
        }
        return subprocess.run(command, env={**os.environ, **found}).returncode


def _ssh(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    name, *command = words or [next(iter(addresses()))]
    lab.ask("status")  # says it better than ssh would
    argv = lab.ssh(name, *command, options=("-t",) if not command or sys.stdin.isatty() else ())
    os.execvp(argv[0], argv)


def _run(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    if len(words) < 2:
        raise LabError("`lab run HOST COMMAND…`")
    name, *command = words
    lab.ask("status")
    lab.sync(name)
    path = "/opt/ckpt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    argv = lab.ssh(name, f"cd /{seed.INSIDE} && PATH={path} LC_ALL=C.UTF-8 exec {shlex.join(command)}")
    os.execvp(argv[0], argv)


def _sync(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    for name in words or lab.ask("status")["machines"]:
        lab.sync(name)
    return 0


def _power(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    for name in words:
        if asked.command == "boot":
            lab.ask("boot", host=name)
        else:
            lab.ask(asked.command, host=name)
        if asked.command == "reset":
            # Its ssh may still greet for a moment: what is gone is not there.
            time.sleep(0.5)
        if asked.command in ("boot", "reset"):
            lab.wait(name)
    return 0


def _status(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    if not lab.alive:
        print("there is no lab")
        return 1
    print(f"lab in {lab.place}, ssh -F {lab.ssh_config}")
    for name, state in lab.ask("status")["machines"].items():
        print(f"{name}  {addresses()[name]}  {state}")
    return 0


def _down(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    lab.down()
    return 0


def _build(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    again = "--again" in words
    for which in [word for word in words if word != "--again"] or ["trixie"]:
        print(image.ready(which, again=again))
    return 0


def _connect(lab: Lab, words: list[str], asked: argparse.Namespace) -> int:
    """For ssh's ProxyCommand: hand it the connection on its socket, which is our standard output."""
    found = lab.connect(words[0])
    with socket.socket(fileno=os.dup(1)) as ssh:
        socket.send_fds(ssh, [b"\0"], [found])
    return 0


COMMANDS = {
    "up": _up,
    "with": _with,
    "ssh": _ssh,
    "run": _run,
    "sync": _sync,
    "off": _power,
    "boot": _power,
    "reset": _power,
    "cut": _power,
    "mend": _power,
    "status": _status,
    "down": _down,
    "build": _build,
    "connect": _connect,
}
