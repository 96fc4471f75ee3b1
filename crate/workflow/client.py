"""Has a command done by a child of the warm process (`warm.py`), as if it ran in this one.

Imports nothing but the standard library: this is what a rule's process loads.
"""

import contextlib
import json
import os
import signal
import socket

ADDRESS_VARIABLE = "CRATE_WARM"  # the socket of the warm process
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT")


def run_warm(words: list[str]) -> int | None:
    """The exit status of `crate <words>`; None if no warm process answers.

    The child has this process's directory, environment and standard streams. It gets the signals
    that this process gets, and dies with it.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        return None
    request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            message = json.dumps(request).encode()
            socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(message)
            answer = connection.recv(8)  # a signal before it ends this process, and so the child
            if len(answer) < 8:
                return None
            _forward(int.from_bytes(answer, "big"))
        except OSError:  # it is gone, or a standard stream is closed
            return None
        status = connection.recv(1)
        connection.recv(1)  # until the child has ended
    return status[0] if status else 128 + signal.SIGKILL


def _forward(child: int) -> None:
    """From now on this process only passes signals on; a child that ended takes none."""

    def forward(number: int, _frame) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    def stop(_number: int, _frame) -> None:  # Ctrl-Z
        forward(signal.SIGSTOP, None)
        os.kill(os.getpid(), signal.SIGSTOP)

    for name in FORWARDED:
        signal.signal(getattr(signal, name), forward)
    signal.signal(signal.SIGTSTP, stop)
