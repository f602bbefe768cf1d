"""A lab as its user sees it: machines that are up when it says so, commands in them, and nothing left at the end."""

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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmlab import image, seed
from vmlab.machine import accelerator
from vmlab.places import HERE, LabError, addresses

MEMORY = 768
KEEPER_SECONDS = 20.0
LIFE_SECONDS = 8 * 3600
"""A lab that was forgotten ends by itself."""

SYNC_SECONDS = 120.0
ASK_SECONDS = 120.0
# Sent with nothing but what the machine needs: a boot that takes so long has failed.
_BOOT_SECONDS = {"kvm": 60.0, "tcg": 300.0}


class Lab:
    """The lab in a directory. Making one makes nothing yet."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def ssh_config(self) -> Path:
        """What `ssh -F` takes."""
        return self.place / "ssh_config"

    @property
    def alive(self) -> bool:
        """Whether its keeper lives, which holds the lock from its start to its end."""
        try:
            with (self.place / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def begin(self, *, bound: bool = False) -> subprocess.Popen[bytes] | None:
        """Start the keeper, unless it runs. A lab that is ``bound`` ends when the keeper's stdin is closed."""
        if self.alive:
            return None
        shutil.rmtree(self.place, ignore_errors=True)  # what one that crashed has left
        self.place.mkdir(mode=0o700)
        seed.make_keys(self.place, HERE / "lab")
        argv = ["unshare", "--net", "--pid", "--fork", "--kill-child", sys.executable, "-B", "-m", "vmlab.keeper"]
        with (self.place / "keeper.log").open("wb") as log:
            keeper = subprocess.Popen(
                [*argv, str(self.place), str(LIFE_SECONDS), "bound" if bound else "free"],
                stdin=subprocess.PIPE if bound else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(HERE)},
                start_new_session=True,
            )
        deadline = time.monotonic() + KEEPER_SECONDS
        while not (self.place / "control").exists():
            if keeper.poll() is not None or time.monotonic() > deadline:
                words = (self.place / "keeper.log").read_text(errors="replace").strip()
                keeper.kill()
                raise LabError(f"the lab could not be begun; does this user have root's rights? {words}")
            time.sleep(0.02)
        return keeper

    def boot(self, wanted: dict[str, str], *, memory: int = MEMORY, cpu: str = "max") -> None:
        """Turn machines on, name → image or image@cpu, and wait until each answers."""
        for name, which in wanted.items():
            if name not in addresses():
                raise LabError(f"there is no machine {name!r}: {', '.join(addresses())} are in {HERE / 'hosts'}")
            which, _, own = which.partition("@")
            made = image.ready(which)
            if not (self.place / f"{name}.seed").exists():
                seed.write(self.place, name)
            self.ask("boot", host=name, image=str(made), memory=memory, cpu=own or cpu)
        for name in wanted:
            self.wait(name)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """Have the keeper do something."""
        return self._asked(do, words)[0]

    def connect(self, name: str) -> int:
        """A connection to a machine's ssh, as a file descriptor."""
        _, (found, *_) = self._asked("connect", {"host": name})
        return found

    def _asked(self, do: str, words: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        with socket.socket(socket.AF_UNIX) as talk:
            talk.settimeout(ASK_SECONDS)
            try:
                talk.connect(str(self.place / "control"))
                talk.sendall(json.dumps({"do": do, **words}).encode() + b"\n")
                data, fds, _, _ = socket.recv_fds(talk, 1 << 16, 1)
                while data and not data.endswith(b"\n"):
                    data += talk.recv(1 << 16)
            except (FileNotFoundError, ConnectionError) as error:
                raise LabError("there is no lab: `vagrant/lab up` makes one") from error
            except TimeoutError as error:
                raise LabError(f"the lab has not answered to {do} within {ASK_SECONDS:.0f} s") from error
        answer: dict[str, Any] = json.loads(data or b'{"error": "the lab has ended"}')
        if "error" in answer:
            raise LabError(answer["error"])
        return answer, fds

    def wait(self, name: str) -> None:
        """Wait until a machine's ssh greets."""
        seconds = float(os.environ.get("CKPT_VM_BOOT_SECONDS") or _BOOT_SECONDS.get(accelerator(), 300.0))
        deadline = time.monotonic() + seconds
        while True:
            reason = ""
            try:
                with socket.socket(fileno=self.connect(name)) as line:
                    line.settimeout(5)
                    if line.recv(4) == b"SSH-":
                        return
            except (LabError, OSError) as error:
                reason = str(error)
            if time.monotonic() > deadline or "ended" in reason or "is off" in reason:
                console = (self.place / f"{name}.console").read_text(errors="replace").splitlines()[-15:]
                raise LabError(f"{name} did not come up within {seconds:.0f} s: {reason}", *console)
            time.sleep(0.2)

    def ssh(self, name: str, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        """What runs a shell's ``command`` there."""
        return ["ssh", "-F", str(self.ssh_config), *options, name, *command]

    def sync(self, name: str) -> None:
        """Bring the checkout as it is now."""
        listed = seed.LISTED
        tidy = (
            f"find . -type f ! -name '*.pyc' | LC_ALL=C sort | LC_ALL=C comm -23 - {listed} | xargs -r -d '\\n' rm -f"
        )
        script = f"cd /{seed.INSIDE} && tar -xf - && LC_ALL=C sort -o {listed} {listed} && {tidy}"
        done = subprocess.run(self.ssh(name, script), input=seed.checkout(), capture_output=True, timeout=SYNC_SECONDS)
        if done.returncode:
            raise LabError(
                f"the checkout could not be brought to {name}: {done.stderr.decode(errors='replace').strip()}"
            )

    def down(self) -> None:
        """End it, or remove what one that crashed has left."""
        if self.alive:
            with contextlib.suppress(LabError):
                self.ask("down")
            deadline = time.monotonic() + ASK_SECONDS
            while self.alive:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"the lab in {self.place} does not end; its keeper is the process with the lock there"
                    )
                time.sleep(0.05)
        shutil.rmtree(self.place, ignore_errors=True)

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """For the block, and not longer, whatever ends it."""
        keeper = self.begin(bound=True)
        if keeper is None:
            raise LabError(f"there is a lab in {self.place} already")
        # As if ^C: what is under way is left by its finally.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            yield
        finally:
            self.down()
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait()
