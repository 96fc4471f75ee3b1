"""`crate sample`: text from a language model, token by token as it is drawn."""

import codecs
import dataclasses
import sys
import time
from pathlib import Path

from crate.config import Experiments, Language
from crate.data.registry import get_dataset
from crate.data.tokenizer import TOKENIZERS, Tokenizer, get_tokenizer
from crate.errors import RunError, UsageError
from crate.models.registry import ModelSpec
from crate.plan import Plan, parse_path
from crate.records import RunFolder, read_json


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


def sample(request: Request) -> None:
    """Print the prompt and up to `tokens` more, then on stderr how fast and in how large a cache.

    An empty prompt begins a document; the end of one ends the text.

    Raises:
        UsageError: model, prompt or numbers make no sense. RunError: weights cannot be used.
    """
    if (request.run is None) == (request.weights is None):
        raise UsageError("one of --run and --weights says which model speaks")
    if request.weights is not None and request.model is None:
        raise UsageError("--weights needs --model: a name of 'crate models'")
    if request.run is not None and request.model is not None:
        raise UsageError("--model belongs to --weights: a run knows its model")
    opened = _of_run(request.run) if request.run is not None else _of_weights(request)
    spec, block_size, tokenizer, path, converted = opened
    try:
        request.prompt.encode()
    except UnicodeEncodeError as error:  # how Python passes on what is not UTF-8
        byte = ord(request.prompt[error.start]) & 0xFF
        raise UsageError(f"--prompt: is not UTF-8 (byte 0x{byte:02X})") from None
    ids = tokenizer.encode(request.prompt).tolist() or [tokenizer.end_of_text]

    import torch

    from crate.models import ngram
    from crate.models.carry import carry
    from crate.models.language import Cache, LanguageModel, generate
    from crate.train import read_weights

    weights = converted or read_weights(path)
    if ngram.from_state({name: t.numpy() for name, t in weights.items()}) is not None:
        raise UsageError(f"{path}: holds counts of tokens, no network to sample from")
    block_size = block_size or len(weights["position_embedding.weight"])
    model = LanguageModel(spec, vocab_size=tokenizer.vocab_size, block_size=block_size).eval()
    try:
        carry(model, weights, [])
    except RunError as error:
        raise RunError(f"{path}: does not fit the model: {error}") from None
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    cache, began, count = Cache(model), time.perf_counter(), 0
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
    print(request.prompt, end="", flush=True)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may be several tokens
    for token in drawn:
        print(decoder.decode(tokenizer.decode_bytes([token])), end="", flush=True)
        count += 1
    print(decoder.decode(b"", final=True), flush=True)
    seconds = time.perf_counter() - began
    print(
        f"{count:,} tokens, {count / seconds:,.0f} a second; the cache of {cache.length:,} tokens "
        f"has {cache.bytes / 1e6:,.2f} MB",
        file=sys.stderr,
    )


Opened = tuple[ModelSpec, int | None, Tokenizer, Path, dict | None]


def _of_run(path: str) -> Opened:
    """What a finished run's folder says: spec, block size, tokenizer, weights file."""
    run, results = parse_path(path)
    resolved = Plan(Experiments()).resolve(run)
    if not isinstance(resolved.step, Language):
        raise UsageError(f"{run}: is no language model")
    folder = RunFolder(run.folder(results))
    if read_json(folder.metrics) is None:
        raise UsageError(f"{run}: is not finished; first run {folder.metrics}")
    tokenizer = get_tokenizer(get_dataset(resolved.step.dataset).tokenizer)
    return resolved.spec, resolved.step.block_size, tokenizer, folder.weights, None


def _of_weights(request: Request) -> Opened:
    """An official checkpoint or a weights file of ours, at the published size."""
    from crate.models import released
    from crate.train import read_weights

    spec, path = Plan(Experiments()).spec(request.model, None), request.weights
    if not spec.causal:
        raise UsageError(f"{request.model} is no language model")
    if path.suffix == ".safetensors" and "token_embedding.weight" in (own := read_weights(path)):
        weights = own
    else:
        weights = released.convert(released.read(path), spec, where=path)
    rows = len(weights["token_embedding.weight"])
    for name in TOKENIZERS:
        tokenizer = get_tokenizer(name)
        if tokenizer.vocab_size == rows:
            return spec, None, tokenizer, path, weights
    raise RunError(f"{path}: has {rows:,} tokens, which none of {', '.join(TOKENIZERS)} has")
