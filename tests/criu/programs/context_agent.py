"""A program in a context that does as it is told: a line of Python at a time, over TCP, answered by its value as JSON.

It listens on ``*``, and holds whatever sockets it was told to make as globals. Errors of the kernel come back as their
names.

    context_agent.py [PORT]
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import sys

names = {"socket": socket, "os": os, "json": json}


def answer(line: bytes) -> bytes:
    """What a line comes to."""
    try:
        try:
            code = compile(line.strip(), "agent", "eval")
        except SyntaxError:
            exec(compile(line.strip(), "agent", "exec"), names)
            value: object = None
        else:
            value = eval(code, names)
    except OSError as error:
        value = errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        value = repr(error)
    return json.dumps(value, default=repr).encode() + b"\n"


def main() -> None:
    """Answer for ever."""
    socket.setdefaulttimeout(5)
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 7100
    listener = socket.create_server(("", port), backlog=16)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    rests: dict[socket.socket, bytes] = {}
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if one is listener:
                connection, _ = listener.accept()
                selector.register(connection, selectors.EVENT_READ)
                rests[connection] = b""
                continue
            data = one.recv(1 << 16)
            if not data:
                selector.unregister(one)
                del rests[one]
                one.close()
                continue
            *lines, rests[one] = (rests[one] + data).split(b"\n")
            for line in lines:
                one.sendall(answer(bytes.fromhex(line.decode())))


if __name__ == "__main__":
    main()
