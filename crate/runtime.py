"""Where a run computes: device, precision, threads and ranks, each choice with its reason."""

import contextlib
import dataclasses
import hashlib
import os
import signal

import torch
import torch.distributed as dist

from crate.environment import cpu_name, describe_machine
from crate.errors import RunError
from crate.recipes import Compute


def seed_for(*parts: object) -> int:
    """A 63-bit seed from parts such as `(seed, "order", epoch)`, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*parts)`."""
    return torch.Generator().manual_seed(seed_for(*parts))


def autocast_dtype(device: torch.device, wanted: str) -> tuple[torch.dtype, str]:
    """The dtype of matrix products, and the reason for it.

    wanted: "auto", or the name of a torch dtype.
    """
    if wanted != "auto":
        return getattr(torch, wanted), "asked for"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "the GPU has bfloat16 units (compute capability 8.0 or newer)"
        return torch.float32, "the GPU has no bfloat16 units"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        for flag in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"):
            if capabilities.get(flag):
                return torch.bfloat16, f"the CPU has {flag}"
        return torch.float32, "the CPU has no bfloat16 instructions"
    return torch.float32, f"not measured on {device.type}"


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One process of a run."""

    device: torch.device
    dtype: torch.dtype
    dtype_reason: str
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files and prints."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def part(self, count: int, *, uneven: bool = False) -> slice:
        """This rank's contiguous part of a global batch of `count` examples.

        uneven: whether parts may differ by one example, or be empty.
        Raises `RunError` unless the number of processes divides `count`, or `uneven`.
        """
        if count % self.world and not uneven:
            raise RunError(
                f"a batch of {count} does not divide over {self.world} processes; "
                "change batch_size or the number of processes"
            )
        least, more = divmod(count, self.world)
        first = self.rank * least + min(self.rank, more)
        return slice(first, first + least + (self.rank < more))

    def shard(self, batch: torch.Tensor) -> torch.Tensor:
        """This rank's contiguous shard of a global batch (B, …): (B / world, …).

        Raises `RunError` unless the number of processes divides B.
        """
        return batch[self.part(len(batch))]

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place; returns it."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, *values: int) -> list[int]:
        """The maximum of each value over all ranks, computed on the CPU to avoid a GPU sync."""
        if self.world > 1:
            wanted = torch.tensor(values)
            dist.all_reduce(wanted, dist.ReduceOp.MAX)
            values = wanted.tolist()
        return list(values)

    def describe(self) -> dict:
        """Facts of the machine that run.json records."""
        gpu = self.device.type == "cuda"
        return describe_machine() | {
            "device": torch.cuda.get_device_name(self.device) if gpu else cpu_name(),
            "device_type": self.device.type,
            "autocast": str(self.dtype).removeprefix("torch."),
            "autocast_reason": self.dtype_reason,
            "threads": torch.get_num_threads(),
            "processes": self.world,
            "torch": torch.__version__,
        }


@contextlib.contextmanager
def start(compute: Compute):
    """Set threads and device, and join the process group of RANK and WORLD_SIZE; yields `Runtime`.

    A context manager: it leaves the process group at the end.
    """
    torch.set_num_threads(compute.threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    else:
        device = torch.device("cpu")
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Runtime(device, *autocast_dtype(device, compute.autocast), rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()


class Stop:
    """asked: the number of the signal that asked to stop, or 0."""

    asked = 0


@contextlib.contextmanager
def stop_signals():
    """Yield a `Stop` that records SIGTERM, SIGINT and SIGUSR2, for a loop to save and stop.

    Clusters send SIGUSR2 when a job's time limit is near.
    """
    stop = Stop()

    def ask(number: int, _frame: object) -> None:
        stop.asked = number

    try:
        stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        before = {number: signal.signal(number, ask) for number in stopping}
    except ValueError:  # not the main thread (tests): leave signals alone
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
