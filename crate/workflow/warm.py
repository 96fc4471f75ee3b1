"""The warm process: it has imported torch, and forks a child for each command that a rule starts.

A rule's process (`client.py`) sends its arguments, environment, directory and standard streams. The
child does the command in a session of its own and answers with its exit status; it needs the warm
process no more. The warm process ends when the driver does, however that ends: it reads from a pipe
whose other end only the driver holds.

It imports, reads what is planned, and computes nothing: a child that is forked after torch's thread
pool has worked waits for threads that it does not have. CUDA starts in the child.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import crate
from crate.environment import EXPERIMENTS
from crate.errors import RunError, UsageError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import SETTINGS_VARIABLE
from crate.workflow.client import ADDRESS_VARIABLE

# What the package imports where it is needed
LATER = (
    "PIL.Image", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
    "matplotlib.backends.backend_svg", "scipy.stats", "torch.utils.serialization",
)  # fmt: skip
# No threads before the fork: neither numpy's nor those of pandas' allocator
ALONE = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
SKIPPED = (
    "crate.__main__",
    "crate.plugins",
    "crate.project",
    "crate.data.assets",
)  # no part of a run
_kept: list = []  # the driver's end of the pipe, and the socket's folder
_LONGEST = 60  # characters of the folder of temporary files; a socket's path has at most 107


def why_cold() -> str:
    """Why commands cannot be forked here; "" if they can."""
    if sys.platform != "linux":
        return f"on {sys.platform} a forked process may not use the GPU or the system's frameworks"
    return ""


def start() -> None:
    """Start the warm process, and name it to the processes of rules.

    A rule that comes while it imports waits; once it is gone, rules' processes do the work.
    """
    base = None if len(tempfile.gettempdir()) < _LONGEST else "/tmp"
    folder = tempfile.TemporaryDirectory(prefix="crate-warm-", dir=base)
    address = str(Path(folder.name) / "socket")
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(128)
        passed = [server.fileno(), reader]
        subprocess.Popen(
            [sys.executable, "-m", "crate.workflow.warm", *map(str, passed)],
            env=os.environ | ALONE,
            stdin=subprocess.DEVNULL,
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C reaches a child through its client
        )
    os.close(reader)
    _kept.extend([writer, folder])
    os.environ[ADDRESS_VARIABLE] = address


def serve(server: socket.socket, driver: int) -> tuple[socket.socket, dict, list[int]]:
    """Answer each command with a child; returns in the child: its connection, request and streams.

    driver: a pipe that ends with the driver; then this process ends.
    """
    prepare()
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("note: an imported package started threads, so every run imports torch anew")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        ready, _, _ = select.select([server, driver], [], [])
        if driver in ready:
            shutil.rmtree(Path(server.getsockname()).parent, ignore_errors=True)
            os._exit(0)
        connection, _ = server.accept()
        with contextlib.suppress(OSError, ValueError):
            request, streams = _receive(connection)
            if not os.fork():
                server.close()
                os.close(driver)
                return connection, request, streams
            for stream in streams:
                os.close(stream)
        connection.close()


def prepare() -> None:
    """Import all of the package, and read `experiments/` and the code that identities hash."""
    for module in pkgutil.walk_packages(crate.__path__, "crate."):
        if not module.name.startswith(SKIPPED):
            with contextlib.suppress(ImportError):  # of what is not installed
                importlib.import_module(module.name)
    for name in LATER:
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()
    with contextlib.suppress(UsageError, RunError):  # of plugins: their children say it
        experiments = Experiments(EXPERIMENTS)
        settings = experiments.settings(json.loads(os.environ[SETTINGS_VARIABLE]))
        Plan(experiments, settings).runs("all", settings)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    message = bytearray()
    while len(message) < int.from_bytes(header, "big"):
        part = connection.recv(1 << 20)
        if not part:
            raise ValueError("the rule's process is gone")
        message += part
    return json.loads(message), streams


def become(connection: socket.socket, request: dict, streams: list[int]) -> None:
    """Make this child what the rule's process would have been, and tell that one its number."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    del os.environ[ADDRESS_VARIABLE]  # what this process starts is not forked
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
    connection.sendall(os.getpid().to_bytes(8, "big"))


def _die_with(connection: socket.socket) -> None:
    """End this process at once when the rule's process is gone: it was killed."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    server, driver = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    connection, request, streams = serve(server, driver)
    status = 130  # of a signal before the command begins
    try:
        become(connection, request, streams)
        sys.argv[1:] = request["words"]
        runpy.run_module("crate", run_name="__main__", alter_sys=False)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        sys.exit(status)
    except BrokenPipeError:  # its rule is gone already
        os._exit(status)
    except Exception:
        status = 1
        raise
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(bytes([status & 255]))


if __name__ == "__main__":
    main()
