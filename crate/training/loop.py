"""The training loop of all tasks: model, batches and loss are given to it.

The random choices of update s use seeds made of (seed, s), never the state of a generator that
earlier updates advanced. A killed and resumed run therefore ends bit for bit like one that was not
interrupted (on the CPU), and the number of ranks and micro-batches does not change which images are
seen or how they are augmented.
"""

import dataclasses
import json
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crate.errors import RunError, Stopped
from crate.recipes import Training
from crate.records import RunFolder, atomic_path
from crate.runtime import Runtime, seed_for, stop_signals
from crate.training.optim import learning_rate, make_optimizer
from crate.training.progress import Progress

Batch = tuple[torch.Tensor, ...]  # this rank's shard: tensors of equal first dimension

LOG_EVERY = 20  # optimizer updates between two lines of train.jsonl


@dataclasses.dataclass(frozen=True)
class Session:
    """The run that is trained, and where.

    name      the run's name, for messages
    folder    the run's files
    identity  a checkpoint of another identity is refused
    seed      of all random choices
    runtime   device, precision and ranks
    """

    name: str
    folder: RunFolder
    identity: str
    seed: int
    runtime: Runtime


@dataclasses.dataclass(frozen=True)
class Examples:
    """The training examples.

    batches      update index → the batches from that update to the end of training
    size         of the training set, in `unit`; a checkpoint made with another size is refused
    per_epoch    optimizer updates of an epoch
    unit         "images", "pairs" or "tokens"
    per_example  units of an example
    """

    batches: Callable[[int], Iterator[Batch]]
    size: int
    per_epoch: float
    unit: str = "images"
    per_example: int = 1


def fit(
    model: nn.Module,
    recipe: Training,
    loss: Callable[[nn.Module, Batch], torch.Tensor],
    examples: Examples,
    session: Session,
    *,
    watch: Callable[[], dict] | None = None,
    micro_batches: bool = True,
) -> dict:
    """Train `model` in place; resumes from a checkpoint of the same identity, if there is one.

    On a signal, all ranks checkpoint and stop after the current update.

    Args:
        model: with its initial or transferred weights.
        loss: mean loss of a batch, a scalar.
        watch: called on all ranks after every `recipe.evaluate_every` updates except the last; its
            metrics are added to that update's line of train.jsonl.
        micro_batches: whether the loss of a batch is the mean over its micro-batches. If false, the
            loss splits its own micro-batches.

    Returns:
        details for run.json: "updates", "train_seconds" and "<unit>_per_second".

    Raises:
        RunError: the loss is not finite, or a checkpoint is damaged or of another run.
        Stopped: a signal came; the checkpoint is saved.
    """
    runtime, folder, unit, per_epoch = (
        session.runtime, session.folder, examples.unit, examples.per_epoch,
    )  # fmt: skip
    total = recipe.total_updates(per_epoch)
    micro = recipe.compute.micro_batch if micro_batches else None

    def seen(updates: int) -> int:  # units of the first batches
        return recipe.seen(updates, examples.size) * examples.per_example

    optimizer = make_optimizer(model, recipe)
    path = folder.checkpoint(session.identity)
    done, pending = 0, []  # losses since the last line, still on the device
    if path.exists():
        done, pending = _resume(path, session, examples, model, optimizer)
    seconds = _truncate_history(folder, done) if runtime.main else 0.0

    trained = spread(model, recipe, runtime)
    progress = Progress(
        session.name, total=seen(total), unit=unit, enabled=runtime.main and total > 0
    )
    progress.resume(seen(done))
    began = saved = time.monotonic()
    first = done
    model.train()
    with stop_signals() as stop:
        for index, batch in zip(range(done, total), examples.batches(done), strict=False):
            rate = learning_rate(recipe, index, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            reseed(seed_for(session.seed, "update", index, runtime.rank), runtime)  # drop path
            count = (seen(index + 1) - seen(index)) // examples.per_example
            weight = _weight(count, recipe.batch_size, runtime)
            pending.append(update(trained, optimizer, loss, batch, micro, recipe, runtime, weight))
            done = index + 1

            last = done == total
            every = recipe.evaluate_every(per_epoch)
            watched = watch is not None and every and done % every == 0 and not last
            if done % LOG_EVERY == 0 or last or watched:
                mean = _check_finite(_means(pending, runtime), index, per_epoch)
                pending, now = [], time.monotonic()
                elapsed = now - began
                epoch = done / per_epoch
                metrics = {}
                if watched:
                    metrics = watch()
                    model.train()
                    began += time.monotonic() - now  # evaluation is not training time
                if runtime.main:
                    speed = (seen(done) - seen(first)) / elapsed
                    line = {
                        "step": done,
                        "epoch": round(epoch, 4),
                        "loss": mean,
                        "lr": rate,
                        "seen": seen(done),
                        f"{unit}_per_second": round(speed, 1),
                        "seconds": round(seconds + elapsed, 3),
                    } | metrics
                    folder.append(line)
                if recipe.updates is None:
                    passed = f"epoch {epoch:.1f}/{total / per_epoch:.4g}"
                else:
                    passed = f"update {done:,}/{total:,}"
                note = f"{passed}, loss {mean:.3f}"
                progress.update(seen(done), note)
            # signals and clocks differ between ranks: if one must checkpoint or stop, all do
            due = time.monotonic() - saved >= recipe.compute.checkpoint_seconds
            due, stopped = runtime.all_reduce_max(int(due), stop.asked)
            if last or due or stopped:
                if pending:  # check losses before they go into a checkpoint
                    pending = _means(pending, runtime)
                    _check_finite(pending, index, per_epoch)
                if runtime.main:
                    _save_checkpoint(path, session, examples, done, pending, model, optimizer)
                runtime.all_reduce_max(0)  # a barrier: wait until the file is written
                saved = time.monotonic()
            if stopped and not last:
                raise Stopped(
                    f"stopped by {signal.Signals(stopped).name} at update {done:,} of {total:,}; "
                    "the next start resumes there",
                    stopped,
                )
    if done < total:
        raise RunError(f"the data ended at update {done:,} of {total:,}")
    model.eval()
    took = time.monotonic() - began
    return {
        "updates": total,
        "train_seconds": round(seconds + took, 2),
        f"{unit}_per_second": round((seen(done) - seen(first)) / took, 1) if took else 0.0,
    }


def spread(model: nn.Module, recipe: Training, runtime: Runtime) -> nn.Module:
    """Wrap a model for training: DistributedDataParallel over several ranks, torch.compile.

    Operators that can compute their intermediate results again (`layers/gradients.py`) do so if the
    recipe says so.
    """
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = recipe.compute.recompute
    trained = model
    if runtime.world > 1:
        devices = [runtime.device.index] if runtime.device.type == "cuda" else None
        trained = DistributedDataParallel(model, device_ids=devices)
    if recipe.compute.compile:
        trained = torch.compile(trained)
    return trained


def update(
    model: nn.Module,
    optimizer,
    loss: Callable,
    batch: Batch,
    micro: int | None,
    recipe: Training,
    runtime: Runtime,
    weight: float = 1.0,
) -> torch.Tensor:
    """One optimizer update on this rank's shard of a batch; returns the mean loss, a scalar.

    micro: most examples of a micro-batch; None for no limit. weight: of this rank's loss.
    """
    size = len(batch[0])
    chunks = list(zip(*(t.split(micro or size) for t in batch), strict=True))
    mean = torch.zeros((), device=runtime.device)
    for k, chunk in enumerate(chunks):
        # all-reduce gradients once per update, with the last micro-batch
        wait = runtime.world > 1 and k < len(chunks) - 1
        with model.no_sync() if wait else nullcontext():
            with runtime.autocast():
                value = loss(model, chunk) * (weight * len(chunk[0]) / size)
            value.backward()
        mean += value.detach()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if recipe.clip_grad is not None:
        _clip([p.grad for p in parameters if p.grad is not None], recipe.clip_grad)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return mean


def reseed(seed: int, runtime: Runtime) -> None:
    """`torch.manual_seed` for this run's device alone; to look for others takes 0.2 ms."""
    torch.default_generator.manual_seed(seed)
    if runtime.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _clip(gradients: list[torch.Tensor], most: float) -> None:
    """Scale gradients in place so that their global norm is at most `most`, and exactly that.

    torch's `clip_grad_norm_` adds 1e-6 to the norm; the papers' JAX code (optax) does not.
    """
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, (most / norm).clamp(max=1))


def _weight(count: int, batch_size: int, runtime: Runtime) -> float:
    """The weight of this rank's mean loss, so that each of a batch's `count` examples counts once.

    Ranks are averaged; of a smaller last batch they may have different numbers of examples.
    """
    part = runtime.part(count, uneven=count < batch_size)
    return (part.stop - part.start) * runtime.world / count


def _means(losses: list[torch.Tensor], runtime: Runtime) -> list[torch.Tensor]:
    """Mean over all ranks of each loss."""
    return list(runtime.all_reduce_sum(torch.stack(losses)) / runtime.world)


def _check_finite(losses: list[torch.Tensor], index: int, per_epoch: int) -> float:
    """Mean of the losses since the last line. Raises `RunError` if one is not finite."""
    values = torch.stack(losses)
    finite = values.isfinite()
    if not finite.all():
        bad = index - len(losses) + 1 + int((~finite).nonzero()[0])
        raise RunError(
            f"the loss is {values[~finite][0].item()} at update {bad + 1:,} "
            f"(epoch {bad / per_epoch:.2f}); lower lr or check the data"
        )
    return float(values.mean())


# --- checkpoints and history -----------------------------------------------------------


def _save_checkpoint(
    path: Path,
    session: Session,
    examples: Examples,
    done: int,
    pending: list,
    model: nn.Module,
    optimizer,
) -> None:
    state = {
        "identity": session.identity,
        "size": examples.size,
        "done": done,
        "pending": [float(value) for value in pending],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's message hides the failed write
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _resume(
    path: Path, session: Session, examples: Examples, model: nn.Module, optimizer
) -> tuple[int, list]:
    """Load a checkpoint; returns the updates done and the losses not logged yet.

    Raises `RunError` if it is damaged, of another run, or was made with other data.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums
            if archive.testzip():
                raise ValueError("wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise many kinds of errors on damaged files
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise RunError(f"{path}: damaged checkpoint ({reason}); delete it to start over") from None
    if not isinstance(state, dict) or state.get("identity") != session.identity:
        raise RunError(f"{path}: checkpoint of another run; delete it to start over")
    if state.get("size") != examples.size:  # another data set, or other held-out examples
        raise RunError(
            f"{path}: made with {state.get('size'):,} training {examples.unit}, now there are "
            f"{examples.size:,}; restore the data, or delete the checkpoint to start over"
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        pending = [torch.tensor(value, device=session.runtime.device) for value in state["pending"]]
        return int(state["done"]), pending
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RunError(
            f"{path}: checkpoint does not fit the model ({reason}); delete it to start over"
        ) from None


def read_history(folder: RunFolder) -> list[dict]:
    """The lines of train.jsonl; an incomplete last line is left out."""
    lines = []
    if folder.history.exists():
        for text in folder.history.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # the process was killed while writing it
    return lines


def _truncate_history(folder: RunFolder, done: int) -> float:
    """Drop lines of updates after `done`; returns the training seconds so far."""
    lines = [line for line in read_history(folder) if line["step"] <= done]
    if folder.history.exists():
        with atomic_path(folder.history) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines[-1]["seconds"] if lines else 0.0
