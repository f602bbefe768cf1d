"""A program with files: it appends to a log, keeps a state file that it rewrites in place, and answers from a config.

    file_writer.py DIRECTORY PORT

It works in DIRECTORY, listens on a unix socket there, and on TCP, where each client is told how often it was asked.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    """Count for ever."""
    os.chdir(sys.argv[1])
    os.makedirs("run", mode=0o710, exist_ok=True)
    os.makedirs("work", mode=0o750, exist_ok=True)
    os.chdir("work")
    control = socket.socket(socket.AF_UNIX)
    control.bind(os.path.join(sys.argv[1], "run", "control"))
    control.listen()
    log = os.open("../log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    state = os.open("../state", os.O_RDWR | os.O_CREAT, 0o600)
    with socket.create_server(("", int(sys.argv[2]))) as listener:
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            count = int(os.pread(state, 20, 0) or b"0") + 1
            os.pwrite(state, b"%d" % count, 0)
            os.write(log, b"asked %d\n" % count)
            client.sendall(b"%d" % count)
            client.close()


if __name__ == "__main__":
    main()
