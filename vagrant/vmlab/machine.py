"""One machine: a QEMU with a disk of its own over the image's, a cable to the switch, and a line to say things to it.

It is run without any of QEMU's defaults, and boots the kernel directly. What it writes goes into an overlay in the
lab's directory, which outlives a loss of power and not the lab.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmlab.places import LabError

QMP_SECONDS = 30.0
END_SECONDS = 20.0
BRIDGE = "switch"


def accelerator() -> str:
    """`kvm` where it will work, else `tcg`; CKPT_VM_ACCEL overrides.

    A /dev/kvm that can be opened is not enough: without the processor's own flags it may be there and boot no guest.
    """
    if wanted := os.environ.get("CKPT_VM_ACCEL"):
        return wanted
    flags = re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text())
    return "kvm" if flags and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


@dataclass(slots=True)
class Machine:
    """``number`` is the last byte of its MAC; ``image`` the directory of its image."""

    name: str
    number: int
    place: Path
    image: Path
    memory: int
    cpu: str
    qemu: subprocess.Popen[bytes] | None = None
    _cut: bool = field(default=False)

    @property
    def running(self) -> bool:
        """Whether its power is on."""
        return self.qemu is not None and self.qemu.poll() is None

    @property
    def why_ended(self) -> str:
        """What QEMU said at last."""
        words = (self.place / f"{self.name}.qemu").read_text(errors="replace").strip()
        return words or f"QEMU ended with {self.qemu.returncode if self.qemu else 'nothing'}"

    def start(self) -> None:
        """Turn it on; whether it comes up is seen by its ssh."""
        disk = self.place / f"{self.name}.qcow2"
        if not disk.exists():
            base = ["-b", str(self.image / "root.img"), "-F", "raw"]
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)], check=True)
        with (self.place / f"{self.name}.qemu").open("wb") as words:
            self.qemu = subprocess.Popen(self._argv(disk), stdin=subprocess.DEVNULL, stdout=words, stderr=words)
        self._cut = False

    def _argv(self, disk: Path) -> list[str]:
        accel, cpu = accelerator(), self.cpu
        if accel == "tcg":
            # What is translated may be kept in 1 GiB by default, which each machine fills in minutes. What only guards,
            # or reaches further than its memory does, costs an emulated processor a tenth, with init_on_alloc a fifth.
            accel, cpu = "tcg,tb-size=256", f"{self.cpu},la57=off,smap=off,smep=off"
        mac = f"52:54:00:87:00:{self.number:02x}"
        words = "console=ttyS0 quiet mitigations=off init_on_alloc=0 random.trust_cpu=on panic=0"
        console, control = self.place / f"{self.name}.console", self.place / f"{self.name}.qmp"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-name", self.name),
            *("-machine", "pc", "-accel", accel, "-cpu", cpu, "-smp", "1", "-m", str(self.memory)),
            *("-kernel", str(self.image / "vmlinuz"), "-initrd", str(self.image / "initrd"), "-append", words),
            *("-drive", f"if=none,id=disk,file={disk},format=qcow2", "-device", "virtio-blk-pci,drive=disk"),
            *("-drive", f"if=none,id=seed,file={self.place / self.name}.seed,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=seed", "-device", "virtio-rng-pci"),
            *("-netdev", f"tap,id=wire,ifname=tap-{self.name},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=wire,id=eth0,mac={mac},romfile="),
            *("-serial", f"file:{console}", "-qmp", f"unix:{control},server=on,wait=off"),
        ]

    def tell(self, command: str, **arguments: Any) -> Any:
        """One command of QMP, and its answer."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(QMP_SECONDS)
            try:
                line.connect(str(self.place / f"{self.name}.qmp"))
                with line.makefile("rw") as talk:
                    json.loads(talk.readline())
                    _said(talk, {"execute": "qmp_capabilities"})
                    return _said(talk, {"execute": command, "arguments": arguments})
            except (OSError, ValueError) as error:
                raise LabError(f"{self.name}'s QEMU does not answer to {command}: {error}") from error

    def off(self) -> None:
        """Take its power away: what it had not written to its disk is gone, and it tells nobody."""
        if self.qemu is None:
            return
        if self.running:
            with contextlib.suppress(LabError):  # it may end before it has answered
                self.tell("quit")
        try:
            self.qemu.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.qemu.kill()
            self.qemu.wait()
        self.qemu = None

    def reset(self) -> None:
        """Press its button."""
        self.tell("system_reset")

    def link(self, up: bool) -> None:
        """Put the cable in, or pull it."""
        self.tell("set_link", name="eth0", up=up)
        self._cut = not up

    def state(self) -> str:
        """In a word."""
        if not self.running:
            return "off" if self.qemu is None else f"ended: {self.why_ended}"
        return "on, cable cut" if self._cut else "on"


def _said(talk: Any, command: dict[str, Any]) -> Any:
    """What QEMU returns; events that come between are not waited for."""
    talk.write(json.dumps(command) + "\n")
    talk.flush()
    while True:
        line = talk.readline()
        if not line:
            raise ValueError("it hung up")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"].get("desc", answer["error"]))
        if "return" in answer:
            return answer["return"]
