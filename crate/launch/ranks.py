"""The processes (ranks) of one run: who says how many there are, and waiting for all of them."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator

from crate.errors import RunError

# The environment variable by which a launcher says that the ranks in the environment are its own:
# CRATE_RANKS=1 torchrun … -m crate run …
RANKS_VARIABLE = "CRATE_RANKS"
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
VARIABLES = (*NEEDED, "LOCAL_WORLD_SIZE")

SAY_SECONDS = 30.0  # after this long a rank says that it waits for others,
END_SECONDS = 300.0  # and after this long it ends


@contextlib.contextmanager
def ranks(launched: bool) -> Iterator[tuple[int, int]]:
    """This process's rank, and the number of ranks; the environment says the same inside.

    Args:
        launched: whether a launcher of this suite set them. A variable that another program left
            behind would let a single process wait for ranks that nobody starts.

    Raises:
        RunError: a launcher set them wrongly.
    """
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if launched:
        yield _read(found)
        return
    if found.get("WORLD_SIZE", "1") != "1":
        told = f"WORLD_SIZE={found['WORLD_SIZE'][:20]}"
        print(f"{told} of the environment is ignored: this is one process", file=sys.stderr)
    for name in found:
        del os.environ[name]
    try:
        yield 0, 1
    finally:
        os.environ.update(found)


def _read(found: dict[str, str]) -> tuple[int, int]:
    missing = [name for name in NEEDED if name not in found]
    try:
        rank, world = int(found["RANK"]), int(found["WORLD_SIZE"])
        wrong = not 0 <= rank < world or missing or not int(found["MASTER_PORT"])
    except (KeyError, ValueError):
        wrong = True
    if wrong:
        told = ", ".join(f"{key}={value[:20]}" for key, value in found.items()) or "nothing"
        raise RunError(f"ranks need {', '.join(NEEDED)} in the environment; it has {told}")
    return rank, world


def await_ranks(rank: int, world: int) -> None:
    """Wait until all ranks are here: the first listens where torch will, the others call it.

    torch itself waits for half an hour without a word.

    Raises:
        RunError: they are not all here within `END_SECONDS`.
    """
    if world == 1:
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    clock = _Clock(rank, world, f"{host}:{port}")
    if rank:
        while not _call(host, port, rank):
            clock.tick("the first of them does not answer")
            time.sleep(0.2)
        return
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, backlog=world, dualstack_ipv6=both)
    except OSError as error:
        raise RunError(f"port {port} cannot be used by the ranks ({error.strerror})") from None
    here: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as open_calls:
        server.settimeout(0.2)
        while len(here) < world - 1:
            clock.tick(f"{len(here) + 1} of them are here")
            with contextlib.suppress(OSError, ValueError):  # a rank that gave up calls again
                call = open_calls.enter_context(server.accept()[0])
                call.settimeout(2)
                here[int(call.recv(16))] = call
        for call in here.values():
            with contextlib.suppress(OSError):
                call.sendall(b"all")


def _call(host: str, port: int, rank: int) -> bool:
    """Whether the first rank answers that all are here."""
    try:
        with socket.create_connection((host, port), timeout=2) as call:
            call.sendall(f"{rank}".encode())
            call.settimeout(END_SECONDS)
            return call.recv(16) == b"all"
    except OSError:
        return False


class _Clock:
    """Says once that a rank waits, and ends the wait."""

    def __init__(self, rank: int, world: int, where: str):
        self.who, self.where = f"rank {rank} of {world}", where
        self.began, self.said = time.monotonic(), False

    def tick(self, what: str) -> None:
        waited = time.monotonic() - self.began
        if waited > END_SECONDS:
            raise RunError(
                f"{self.who} waited {waited:.0f} s for the other ranks at {self.where}: {what}"
            )
        if waited > SAY_SECONDS and not self.said:
            self.said = True
            print(
                f"{self.who} waits for the other ranks at {self.where}: {what}",
                file=sys.stderr,
                flush=True,
            )
