"""What goes wrong with files that are downloaded and unpacked, in our own words."""

import contextlib
import errno
import http.client
import pickle
import socket
import sys
import tarfile
import urllib.error
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from crate.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT)
NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
DAMAGE = (
    RuntimeError,  # torchvision: another md5
    ValueError,
    KeyError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def in_own_words(path: Path, url: str = "") -> Iterator[None]:
    """Turn any trouble with a file into a `RunError` of one line: what is wrong, and what to do.

    url: where it is downloaded from, if it is.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # urllib has no timeout of its own
    there = path.is_file()
    try:
        yield
    except NETWORK as error:
        state = "is damaged or half-downloaded" if there else "is missing"
        reach = _unreachable(url, error)
        delete = "delete it, " if there else ""
        raise RunError(
            f"{path}: {state}, and {reach}; to go without a network, {delete}put {url} there"
        ) from None
    except tarfile.FilterError as error:
        raise RunError(
            f"{path}: '{error.tarinfo.name}' would leave the folder; is it the official archive?"
        ) from None
    except OSError as error:
        if error.errno in FULL:
            reason = "no room is left for what is in it; make room and run this again"
        elif error.strerror:
            reason = f"{error.strerror}: {error.filename or path}"
        else:  # of gzip and tarfile, about content
            reason = "is damaged or half-downloaded; download it again"
        raise RunError(f"{path}: {reason}") from None
    except DAMAGE:
        raise RunError(f"{path}: is damaged or half-downloaded; download it again") from None
    finally:
        socket.setdefaulttimeout(before)


def _unreachable(url: str, error: Exception) -> str:
    """That an address cannot be had, and why."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{urlsplit(url).hostname} answers with error {error.code}"
    reason = getattr(error, "reason", error)
    why = getattr(reason, "strerror", None) or type(reason).__name__
    return f"{urlsplit(url).hostname} cannot be reached ({why})"
