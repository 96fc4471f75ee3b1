"""`crate sample`: text from a language model, token by token as it is drawn."""

import codecs
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from crate.data.tokenizer import TOKENIZERS, Tokenizer, get_tokenizer
from crate.errors import RunError, UsageError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan

if TYPE_CHECKING:
    from crate.models.language import LanguageModel


SMALL = 256  # width below which several threads wait for each other longer than they work


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command line asks for: a finished run, or an official checkpoint of a named model."""

    run: str | None
    model: str | None
    weights: Path | None
    prompt: str
    tokens: int
    temperature: float
    top_k: int | None
    seed: int
    scale: str | None = None  # of the model that `weights` belong to; None: as published


def sample(request: Request) -> None:
    """Print the prompt and up to `tokens` more, then on stderr how fast and in how large a cache.

    An empty prompt begins a document; the end of one ends the text.

    Raises:
        UsageError: model, prompt or numbers make no sense.
        RunError: weights cannot be used, or nothing can be printed.
    """
    if sys.stdout is None:
        raise RunError("there is nowhere to print to")
    if not 0 <= request.seed < 2**63:
        raise UsageError(f"--seed: {request.seed} is not from 0 to 2^63 - 1")
    try:
        request.prompt.encode()
    except UnicodeEncodeError as error:  # how Python passes on what is not UTF-8
        byte = ord(request.prompt[error.start]) & 0xFF
        raise UsageError(f"--prompt: is not UTF-8 (byte 0x{byte:02X})") from None
    model, tokenizer = _open(request)
    ids = tokenizer.encode(request.prompt).tolist() or [tokenizer.end_of_text]

    import torch

    from crate.models.language import Cache, generate

    if model.spec.dim < SMALL:
        torch.set_num_threads(1)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    cache, began = Cache(model), time.perf_counter()
    drawn = generate(
        model,
        ids,
        request.tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        generator=torch.Generator().manual_seed(request.seed),
        stop=tokenizer.end_of_text,
        cache=cache,
    )
    sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer letters than the model
    try:
        count = _print(request.prompt, drawn, tokenizer)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"the text cannot be written ({error.strerror})") from None
    seconds = time.perf_counter() - began
    print(
        f"{count:,} tokens, {count / seconds:,.0f} a second; a cache of "
        f"{cache.bytes / 1e6:,.2f} MB for the last {cache.length:,}",
        file=sys.stderr,
    )


def _print(prompt: str, drawn: Iterator[int], tokenizer: Tokenizer) -> int:
    """Print a prompt and the tokens that follow as they come; returns how many came."""
    count = 0
    print(prompt, end="", flush=True)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may be several tokens
    for token in drawn:
        print(decoder.decode(tokenizer.decode_bytes([token])), end="", flush=True)
        count += 1
    print(decoder.decode(b"", final=True), flush=True)
    return count


def _open(request: Request) -> "tuple[LanguageModel, Tokenizer]":
    """The model with its weights, and the tokenizer it speaks by."""
    from crate.checkpoints import convert as released
    from crate.checkpoints.export import read_finished
    from crate.models.build import build_language
    from crate.models.transfer import transfer_weights

    if (request.run is None) == (request.weights is None):
        raise UsageError("one of --run and --weights says which model speaks")
    if request.run is not None:
        if request.model is not None:
            raise UsageError("--model belongs to --weights: a run knows its model")
        where, _, record, spec, state = read_finished(request.run)
    else:
        if request.model is None:
            raise UsageError("--weights needs --model: a name of 'crate models'")
        where, record = request.weights, None
        spec = Plan(Experiments()).spec(request.model, request.scale)
        state = released.read(where)
        if spec.causal and "token_embedding.weight" not in state:
            state = released.convert(state, spec, where=where)
    if not spec.causal:
        raise UsageError(f"{where}: is no language model")
    if "ngram.tokens" in state:
        raise UsageError(f"{where}: holds counts of tokens, no network to sample from")
    sizes = released.sizes(state, spec)
    model = build_language(spec, **sizes)
    try:
        transfer_weights(model, state, [])
    except RunError as error:
        told = str(error).removeprefix("the parent's ")
        hint = "" if record or request.scale else "; weights of a smaller scale need --scale"
        raise RunError(f"{where}: does not fit the model: {told}{hint}") from None
    if record:
        return model, get_tokenizer(record["config"]["data"]["tokenizer"])
    for name in TOKENIZERS:
        if get_tokenizer(name).vocab_size == sizes["vocab_size"]:
            return model, get_tokenizer(name)
    known = ", ".join(TOKENIZERS)
    raise RunError(f"{where}: has {sizes['vocab_size']:,} tokens, as none of {known}")
