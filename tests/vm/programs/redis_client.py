"""One connection to a redis, one INCR after the other; each answer is the next number, and no other.

redis_client.py ADDRESS
"""

from __future__ import annotations

import sys
import time

from tests.vm.programs.reporting import PAUSE, Report, connected

report = Report()
with connected(sys.argv[1], 6379) as connection, connection.makefile("rb") as answers:
    for number in report.rounds():
        connection.sendall(b"INCR counter\r\n")
        answer = answers.readline()
        if answer != b":%d\r\n" % (number + 1):
            sys.exit(f"the answer after {number} is {answer!r}")
        time.sleep(PAUSE)
