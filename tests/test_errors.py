"""One line about an error: the cause that it came from, whoever wrapped it."""

import concurrent.futures
import errno
import multiprocessing

import pytest
import torch

from crate.errors import reason_of, told


def wrapped(outer: Exception, inner: Exception) -> Exception:
    try:
        raise outer from inner
    except type(outer) as error:
        return error


def in_a_pool() -> Exception:
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(int, "x").exception()


class Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("picture 7 is damaged\nmore lines")


def in_a_loader() -> Exception:
    with pytest.raises(ValueError, match="Caught ValueError") as caught:
        list(torch.utils.data.DataLoader(Failing(), num_workers=1))
    return caught.value


def by_the_compiler() -> Exception:
    from torch._dynamo.exc import BackendCompilerFailed

    def inductor():
        pass

    return BackendCompilerFailed(inductor, RuntimeError("No working C++ compiler found"), None)


@pytest.mark.parametrize(
    ("make", "reason", "line"),
    [
        (
            by_the_compiler,
            "No working C++ compiler found",
            "RuntimeError: No working C++ compiler found",
        ),
        (
            lambda: RuntimeError("backend='inductor' raised:\nNoCompiler: no g++\n\nSet X=1"),
            "backend='inductor' raised: NoCompiler: no g++",
            "RuntimeError: backend='inductor' raised: NoCompiler: no g++",
        ),
        (
            lambda: wrapped(
                RuntimeError("reading failed"), wrapped(KeyError("a"), EOFError("cut"))
            ),
            "cut",
            "EOFError: cut",
        ),
        (
            in_a_pool,
            "invalid literal for int() with base 10: 'x'",
            "ValueError: invalid literal for int() with base 10: 'x'",
        ),
        (in_a_loader, "picture 7 is damaged", "ValueError: picture 7 is damaged"),
        (
            lambda: ExceptionGroup("two", [ValueError("first"), ValueError("second")]),
            "first",
            "ValueError: first",
        ),
        (
            lambda: OSError(errno.ENOSPC, "No space left on device", "/x"),
            "No space left on device",
            "OSError: [Errno 28] No space left on device: '/x'",
        ),
        (lambda: ValueError(None), "ValueError", "ValueError: "),
        (lambda: ValueError("\n\n"), "ValueError", "ValueError: "),
        (lambda: ValueError("\n one \n two"), "one", "ValueError: one"),
    ],
)
def test_the_cause_is_what_is_told(make, reason, line):
    error = make()
    assert reason_of(error) == reason
    assert told(error) == line


def test_causes_in_a_circle_come_to_an_end():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert reason_of(first) in ("first", "second")
