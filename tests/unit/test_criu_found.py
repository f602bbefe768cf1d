"""Which CRIU ckpt takes, and which it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.errors import UnsupportedError


@pytest.mark.parametrize("command", ["dump -o x.ckpt", "migrate --host nowhere.invalid --dry-run"])
def test_dump_by_a_criu_that_insists_on_its_own_lock_is_refused_before_anything(tmp_path: Path, command: str) -> None:
    # As Debian 12 has it: its protocol knows IPTABLES and NFTABLES.
    package = tmp_path / "usr/lib/python3/dist-packages/pycriu"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "rpc_pb2.py").write_text("IPTABLES, NFTABLES = 1, 2\n")
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    words = ["--json", *command.split(), str(os.getpid()), "--criu", str(program)]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from ckpt.cli.main import main; sys.exit(main())", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == UnsupportedError.status, done.stderr
    assert json.loads(done.stderr)["error"]["code"] == "criu-too-old"
    assert not (tmp_path / "x.ckpt").exists()
