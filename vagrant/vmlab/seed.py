"""What tells one machine from another: its name, keys and known hosts, and the checkout under test.

All of it is one tar archive, which the machine unpacks over its disk at its first boot; the disk itself is every
machine's. The keys are made for one lab and end with it. The checkout alone is what ``lab sync`` brings later.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from vmlab.places import CHECKOUT, LabError, addresses

INSIDE = "srv/ckpt"
LISTED = ".lab-files"
"""The names of all that came with the checkout: what is not among them any more is removed."""

_SSH_INSIDE = """\
Host a b c
    User root
    BatchMode yes
    ConnectTimeout 10
    ServerAliveInterval 5
    ServerAliveCountMax 3
"""

_SSH_OUTSIDE = """\
Host {names}
    User root
    IdentityFile {place}/key
    IdentitiesOnly yes
    UserKnownHostsFile {place}/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
    LogLevel ERROR
    ServerAliveInterval 5
    ServerAliveCountMax 6
    SendEnv CI CKPT_*
    ProxyCommand {lab} --lab {place} connect %h
    ProxyUseFdpass yes
"""


def make_keys(place: Path, lab: Path) -> None:
    """The lab's key, the machines' host keys, and the configuration with which ssh finds its way to them."""
    known = []
    for name in ("key", *addresses()):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {name}", "-f", str(place / name)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    for name, address in addresses().items():
        known.append(f"{name},{address} {(place / f'{name}.pub').read_text()}")
    (place / "known_hosts").write_text("".join(known))
    names = " ".join(addresses())
    (place / "ssh_config").write_text(_SSH_OUTSIDE.format(names=names, place=place, lab=lab))


def write(place: Path, name: str) -> Path:
    """The archive for one machine's first boot."""
    path = place / f"{name}.seed"
    with tarfile.open(path, "w") as archive:
        _text(archive, "etc/lab/name", f"{name} {addresses()[name]}\n")
        _text(archive, "etc/lab/host_key", (place / name).read_text(), 0o600)
        _text(archive, "etc/lab/authorized_keys", (place / "key.pub").read_text())
        _text(archive, "etc/hostname", f"{name}\n")
        hosts = "".join(f"{address} {other}\n" for other, address in addresses().items())
        _text(archive, "etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{hosts}")
        _text(archive, "root/.ssh/id_ed25519", (place / "key").read_text(), 0o600)
        _text(archive, "root/.ssh/known_hosts", (place / "known_hosts").read_text())
        _text(archive, "root/.ssh/config", _SSH_INSIDE, 0o600)
        add_checkout(archive, f"{INSIDE}/")
    return path


def checkout() -> bytes:
    """The checkout alone, as an archive."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        add_checkout(archive, "")
    return memory.getvalue()


def add_checkout(archive: tarfile.TarFile, prefix: str) -> None:
    """Every file that git knows, or would if it were asked to."""
    argv = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"git cannot tell what belongs to {CHECKOUT}: {done.stderr.strip()}")
    names = sorted({name for name in done.stdout.split("\0") if name and (CHECKOUT / name).is_file()})
    for name in names:
        archive.add(CHECKOUT / name, f"{prefix}{name}", filter=_roots)
    _text(archive, f"{prefix}{LISTED}", "".join(f"./{name}\n" for name in sorted([*names, LISTED])))


def _roots(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _text(archive: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    data = text.encode()
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))
