"""One connection to a server that sends back what it is sent: one line after the other, each as it was.

echo_client.py ADDRESS PORT
"""

from __future__ import annotations

import sys
import time

from tests.vm.programs.reporting import PAUSE, Report, connected

report = Report()
with connected(sys.argv[1], int(sys.argv[2])) as connection, connection.makefile("rb") as answers:
    for number in report.rounds():
        line = b"%d\n" % number
        connection.sendall(line)
        answer = answers.readline()
        if answer != line:
            sys.exit(f"{line!r} came back as {answer!r}")
        time.sleep(PAUSE)
