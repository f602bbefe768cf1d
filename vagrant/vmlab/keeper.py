"""The process that all machines of a lab live below, and with which they end, whatever ends it.

It is the first of a PID namespace and has a network namespace of its own, in which is the switch: when it goes, by
whatever way, the kernel takes every QEMU, the switch and its cables along. Left is then only the lab's directory,
whose lock is free, and the next ``lab up`` or ``lab down`` removes it. It is asked over a socket in that directory: one
line of JSON, one line of answer. ``connect`` is answered with a connection to a machine's ssh, made in here and handed
out, so that who asks may be in any namespace. Nothing listens on the host's network.

A lab that is bound to a command ends when its standard input does; any ends after a while.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from vmlab.machine import BRIDGE, Machine
from vmlab.places import SWITCH, LabError, addresses

CONNECT_SECONDS = 2.0


class Keeper:
    """What is asked of it, word by word."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.ended = threading.Event()
        self._machines: dict[str, Machine] = {}
        self._turn = threading.Lock()

    def answer(self, asked: dict[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        """Do what is asked; a connection goes along with the answer of ``connect``."""
        if asked["do"] == "connect":
            return {}, self._connected(self._found(asked["host"]))
        with self._turn:
            if asked["do"] == "boot":
                self._boot(asked)
            elif asked["do"] == "status":
                return {"machines": {name: one.state() for name, one in self._machines.items()}}, None
            elif asked["do"] == "down":
                self.ended.set()
            else:
                self._at(asked["do"], self._found(asked["host"]))
        return {}, None

    def _boot(self, asked: dict[str, Any]) -> None:
        name = asked["host"]
        if name not in self._machines:
            number = int(addresses()[name].rpartition(".")[2])
            image = Path(asked["image"])
            self._machines[name] = Machine(name, number, self.place, image, asked["memory"], asked["cpu"])
            _run("ip", "tuntap", "add", f"tap-{name}", "mode", "tap")
            _run("ip", "link", "set", f"tap-{name}", "master", BRIDGE, "up")
        if not self._machines[name].running:
            self._machines[name].start()

    def _at(self, do: str, machine: Machine) -> None:
        if do == "off":
            machine.off()
        elif do == "reset":
            machine.reset()
        elif do in ("cut", "mend"):
            machine.link(up=do == "mend")
        else:
            raise LabError(f"nobody knows how to {do}")

    def _found(self, name: str) -> Machine:
        if name not in self._machines:
            raise LabError(f"{name} is not in this lab: `lab up {name}` puts it there")
        return self._machines[name]

    def _connected(self, machine: Machine) -> socket.socket:
        if not machine.running:
            raise LabError(f"{machine.name} is off: {machine.state()}")
        return socket.create_connection((addresses()[machine.name], 22), CONNECT_SECONDS)

    def end(self) -> None:
        """Every machine loses its power."""
        with self._turn:
            for machine in self._machines.values():
                machine.off()


def serve(keeper: Keeper, listener: socket.socket) -> None:
    """Answer whoever comes, each in a thread."""
    while True:
        talk, _ = listener.accept()
        threading.Thread(target=_one, args=(keeper, talk), daemon=True).start()


def _one(keeper: Keeper, talk: socket.socket) -> None:
    with talk, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        handed: socket.socket | None = None
        try:
            answer, handed = keeper.answer(json.loads(talk.makefile().readline()))
        except (LabError, OSError, subprocess.CalledProcessError) as error:
            answer = {"error": str(error)}
        line = json.dumps(answer).encode() + b"\n"
        if handed is None:
            talk.sendall(line)
            return
        with handed:
            handed.settimeout(None)
            socket.send_fds(talk, [line], [handed.fileno()])


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def _bound(keeper: Keeper) -> None:
    while os.read(0, 1):
        pass
    keeper.ended.set()


def main() -> int:
    """The keeper of the lab in the directory argv[1], for at most argv[2] seconds; argv[3] is `bound` or `free`."""
    place, seconds, bound = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "bound"
    lock = (place / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", BRIDGE, "up", "type", "bridge", "forward_delay", "0")
    _run("ip", "address", "add", f"{SWITCH}/24", "dev", BRIDGE)
    keeper = Keeper(place)
    # The first of a PID namespace gets no signal that it does not handle.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: keeper.ended.set())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place / "control.new"))
    listener.listen(64)
    (place / "control.new").rename(place / "control")
    threading.Thread(target=serve, args=(keeper, listener), daemon=True).start()
    if bound:
        threading.Thread(target=_bound, args=(keeper,), daemon=True).start()
    keeper.ended.wait(seconds)
    keeper.end()
    shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
