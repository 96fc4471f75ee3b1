"""`crate sample`: text from a language model, printed token by token."""

import codecs
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from crate.data.tokenizer import TOKENIZERS, Tokenizer, get_tokenizer
from crate.errors import RunError, UsageError, reason_of
from crate.explore.networks import best_device, read_any_weights
from crate.planning.loader import Experiments

if TYPE_CHECKING:
    from crate.models.language import LanguageModel


SMALL = 256  # dim below which one thread is faster than several


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `crate sample`: a finished run, or weights of a named model."""

    run: str | None
    model: str | None
    weights: Path | None
    prompt: str
    tokens: int
    temperature: float
    top_k: int | None
    seed: int
    scale: str | None = None  # the model's, with `weights`; None: as published


def sample(request: Request) -> None:
    """Print the prompt and up to `tokens` more; then speed and cache size to stderr.

    An empty prompt begins a new document. The text ends with the document.

    Raises:
        UsageError: the model, the prompt or a number is not valid.
        RunError: the weights cannot be read or do not fit, or the text cannot be printed.
    """
    if sys.stdout is None:
        raise RunError("standard output is closed")
    if not 0 <= request.seed < 2**63:
        raise UsageError(f"--seed: {request.seed} is not from 0 to 2^63 - 1")
    try:
        request.prompt.encode()
    except UnicodeEncodeError as error:  # Python's surrogate for a byte that is not UTF-8
        byte = ord(request.prompt[error.start]) & 0xFF
        raise UsageError(f"--prompt: is not UTF-8 (byte 0x{byte:02X})") from None
    model, tokenizer = _open(request)
    ids = tokenizer.encode(request.prompt).tolist() or [tokenizer.end_of_text]

    import torch

    from crate.models.language import Cache, generate

    if model.spec.dim < SMALL:
        torch.set_num_threads(1)
    model.eval().to(best_device())
    cache, began = Cache(model), time.perf_counter()
    tokens = generate(
        model,
        ids,
        request.tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        generator=torch.Generator().manual_seed(request.seed),
        stop=tokenizer.end_of_text,
        cache=cache,
    )
    sys.stdout.reconfigure(errors="replace")  # not every terminal can print every character
    try:
        count = _print(request.prompt, tokens, tokenizer)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"the text cannot be written ({reason_of(error)})") from None
    seconds = time.perf_counter() - began
    print(
        f"{count:,} tokens, {count / seconds:,.0f} a second; a cache of "
        f"{cache.bytes / 1e6:,.2f} MB for the last {cache.length:,}",
        file=sys.stderr,
    )


def _print(prompt: str, tokens: Iterator[int], tokenizer: Tokenizer) -> int:
    """Print a prompt and then each token as soon as it is drawn; returns the number of tokens."""
    count = 0
    print(prompt, end="", flush=True)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be several tokens
    for token in tokens:
        print(decoder.decode(tokenizer.decode_bytes([token])), end="", flush=True)
        count += 1
    print(decoder.decode(b"", final=True), flush=True)
    return count


def _open(request: Request) -> "tuple[LanguageModel, Tokenizer]":
    """The model with its weights, and its tokenizer; raises as `sample`."""
    from crate.checkpoints.convert import infer_sizes
    from crate.checkpoints.finished import read_finished
    from crate.models.build import build_language
    from crate.models.transfer import transfer_weights

    if (request.run is None) == (request.weights is None):
        raise UsageError("give either --run or --weights")
    if request.run is not None:
        if request.model is not None:
            raise UsageError("--model belongs to --weights: a run has its model")
        where, _, record, spec, state = read_finished(request.run)
    else:
        if request.model is None:
            raise UsageError("--weights needs --model: a name of 'crate models'")
        where, record = request.weights, None
        spec = Experiments().spec(request.model, request.scale)
        state = read_any_weights(where, spec) if spec.causal else {}
    if not spec.causal:
        raise UsageError(f"{where}: is not a language model")
    if "ngram.tokens" in state:
        raise UsageError(f"{where}: holds counts of tokens, no network to sample from")
    sizes = infer_sizes(state, spec)
    model = build_language(spec, **sizes)
    try:
        transfer_weights(model, state, [])
    except RunError as error:
        reason = str(error).removeprefix("the parent's ")
        hint = "" if record or request.scale else "; weights of a smaller scale need --scale"
        raise RunError(f"{where}: does not fit the model: {reason}{hint}") from None
    if record:
        return model, get_tokenizer(record["config"]["data"]["tokenizer"])
    for name in TOKENIZERS:
        if get_tokenizer(name).vocab_size == sizes["vocab_size"]:
            return model, get_tokenizer(name)
    known = ", ".join(TOKENIZERS)
    raise RunError(
        f"{where}: its vocabulary has {sizes['vocab_size']:,} tokens; none of {known} has that many"
    )
