"""One connection to a redis, one INCR after the other; each answer is the next number, and no other.

redis_client.py ADDRESS [--goes-on]

--goes-on: others have counted before, and the first answer is not 1.
"""

from __future__ import annotations

import sys
import time

from tests.vm.programs.reporting import PAUSE, Report, connected

report = Report()
with connected(sys.argv[1], 6379) as connection, connection.makefile("rb") as answers:
    first = 0
    for number in report.rounds():
        connection.sendall(b"INCR counter\r\n")
        answer = answers.readline()
        if number == 0 and "--goes-on" in sys.argv:
            first = int(answer[1:]) - 1
            if first < 1:
                sys.exit("nobody has counted before")
        if answer != b":%d\r\n" % (first + number + 1):
            sys.exit(f"the answer after {number} is {answer!r}")
        time.sleep(PAUSE)
