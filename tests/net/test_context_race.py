"""The books under many hands: processes of contexts that share addresses bind and close, and nothing may be left over.

``CKPT_TEST_BINDS`` says how many binds there are in all; a short run is enough to find what is not atomic, a long one
(millions) what is almost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net import context_lab
from tests.net.context_lab import Lab, ip

BINDS = int(os.environ.get("CKPT_TEST_BINDS", "120000"))
PROCESSES = 6
SECONDS = 240 + BINDS // 2000

_HAMMER = """
import errno, random, socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
addresses, count, seed = sys.argv[2].split(), int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
kept, bound, refused = [], 0, 0
while bound + refused < count:
    family = socket.AF_INET6 if chance.random() < 0.4 else socket.AF_INET
    own = [one for one in addresses if (':' in one) == (family == socket.AF_INET6)]
    s = socket.socket(family, socket.SOCK_STREAM if chance.random() < 0.5 else socket.SOCK_DGRAM)
    if chance.random() < 0.5:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6 and chance.random() < 0.5:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    address = chance.choice(['', '', *own])
    try:
        s.bind((address, chance.choice([0, 7001, 7002, 7003])))
        if s.type == socket.SOCK_STREAM and chance.random() < 0.2:
            s.listen()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        refused += 1
    else:
        bound += 1
    kept.append(s)
    if len(kept) > 3:
        kept.pop(chance.randrange(4)).close()
print(bound, refused)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    with context_lab.lab(tmp_path / "state") as found:
        yield found


@pytest.mark.timeout(SECONDS + 30)
def test_books_are_empty_after_racing_binds(place: Lab) -> None:
    addresses = (ip("first", 4), ip("second", 4), ip("first", 6), ip("second", 6))
    one = place.context(*addresses)
    other = place.context(*reversed(addresses))  # other first addresses, so that only the books arbitrate
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _HAMMER, made.cgroup, " ".join(addresses), str(BINDS // PROCESSES), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(PROCESSES // 2)
        for made in (one, other)
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0].split() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert all(process.returncode == 0 for process in running)
    bound, refused = (sum(int(words[place]) for words in said) for place in (0, 1))
    assert bound > BINDS // 20
    assert refused > BINDS // 20
    assert place.books() == []
