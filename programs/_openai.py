"""What the two OpenAI-compatible programs share: reading a request, running its choices, counting, refusing.

A request is checked field by field against a struct; fields that nobody here knows are ignored, as OpenAI's servers
do, but fields that would change the meaning of the answer are refused by name. The prompt is computed once, whatever
`n` is: the choices continue from forks of one file, and that from what the prefix cache knows. No file is closed: a
process serves one request, and its files end with it.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from programs.prefix_cache import Policy, PrefixCache
from sdk import (
    Chunk,
    Decoding,
    FinishReason,
    Generation,
    KVFile,
    Sampling,
    TokenLogprob,
    kv,
    model,
    random,
    rusage,
    syscalls,
)

R = TypeVar("R", bound="Options")
T = TypeVar("T")

N_CHOICES_MAX = 128
N_EARLY = 256  # tokens; so many are computed and stored before the answer begins, for those who come meanwhile
_AT = re.compile(r"(.*) - at (?:`key` in )?`\$\.?(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")


class Refused(Exception):
    """The request is wrong; `reply` says so to the client."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    def reply(self) -> dict[str, Any]:
        """What a program returns instead of an answer; the front door makes it an HTTP error."""
        error = {"message": str(self), "type": "invalid_request_error", "param": self.param, "code": self.code}
        return {"error": error, "status": 400}


# --- requests ---------------------------------------------------------------------------------------------------


class StreamOptions(Struct, frozen=True):
    include_usage: bool = False


class Options(Struct, kw_only=True):
    """Fields of both kinds of request, by OpenAI's and vLLM's names; those of `Sampling` are read into one."""

    model: str
    n: Annotated[int, Meta(ge=1, le=N_CHOICES_MAX)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    return_token_ids: bool = False
    cache_salt: Annotated[str, Meta(min_length=1)] | None = None  # vLLM's: only those with the same one share
    skip_reading_prefix_cache: bool = False  # vLLM's: compute the prompt anew, for others to find
    cache_prompt: bool = True  # llama.cpp's; false: neither look nor store


def read(request: dict[str, Any], tp: type[R]) -> R:
    """The request as `tp`; a null is a field left out. Raises Refused."""
    return _convert({name: value for name, value in request.items() if value is not None}, tp)


def decoding_of(request: dict[str, Any], options: Options, *, max_tokens: int | None, logprobs: int | None) -> Decoding:
    """How each choice is to be sampled and when it ends. Raises Refused."""
    sampled = {name: request[name] for name in Sampling.__struct_fields__ if request.get(name) is not None}
    sampling = _convert({"temperature": 1.0} | sampled, Sampling)  # OpenAI's default, where ours is greedy
    fields = {
        "max_tokens": max_tokens,
        "stop": [options.stop] if isinstance(options.stop, str) else options.stop,
        "stop_tokens": options.stop_token_ids,
        "include_stop": options.include_stop_str_in_output,
        "ignore_eos": options.ignore_eos,
        "min_tokens": options.min_tokens,
        "logprobs": logprobs,
    }
    return replace(_convert(fields, Decoding), sampling=sampling)


def _convert(fields: dict[str, Any], tp: type[T]) -> T:
    try:
        return msgspec.convert(fields, tp, str_keys=True)
    except msgspec.ValidationError as e:
        raise _refusal(str(e)) from None


def _refusal(message: str) -> Refused:
    """msgspec's message in OpenAI's form."""
    found = _AT.fullmatch(message)
    what, where = (found[1], found[2]) if found else (message, "")
    missing = _MISSING.match(what)
    if missing:
        where, what = ".".join(filter(None, [where, missing[1]])), "it is required"
    what = what.replace("`", "").replace(" | null", "")
    return Refused(f"{where}: {what[:1].lower()}{what[1:]}", param=re.split(r"[.\[]", where)[0] or None)


async def check_room(n_prompt: int, param: str) -> None:
    """Raises Refused when the prompt leaves no room for a single token."""
    n_max = (await model.info()).max_model_len
    if n_prompt >= n_max:
        raise Refused(
            f"This model's maximum context length is {n_max} tokens. However, your prompt has {n_prompt} tokens, "
            "which leaves no room for a completion: shorten it.",
            param=param,
            code="context_length_exceeded",
        )


# --- the cache --------------------------------------------------------------------------------------------------


class Cache:
    """The prefix cache, as one request wants to use it."""

    def __init__(self, options: Options, policy: Policy) -> None:
        self._cache = PrefixCache(salt=options.cache_salt or "", policy=policy) if options.cache_prompt else None
        self._reads = not options.skip_reading_prefix_cache
        self._n_found = 0

    async def begin(self, prompt: Sequence[int], leave: int = 1) -> tuple[KVFile, Sequence[int]]:
        """A file that has read the prompt, but for less than `leave` tokens at its end, and those."""
        if self._cache is not None and self._reads:
            file, n, rest = await self._cache.read(prompt, leave)
            self._n_found += n
            return file, rest
        file = await kv.create()
        if len(prompt) < leave:
            return file, prompt
        await file.append(prompt)
        await self.keep(file)
        return file, []

    async def keep(self, file: KVFile) -> None:
        """What this file holds may be of use to others."""
        if self._cache is not None:
            await self._cache.store(file)

    async def n_cached(self) -> int:
        """Tokens of prompts that were not computed: those found, less those whose KV was gone by then."""
        return max(0, self._n_found - (await rusage()).n_recomputed_tokens)


# --- choices ----------------------------------------------------------------------------------------------------


class Branch(Struct, frozen=True):
    """One choice about to be made: a file, what it has yet to read, and how to go on."""

    index: int
    file: KVFile
    prompt: Sequence[int]
    decoding: Decoding | None  # None: nothing is generated
    cache: Cache

    async def generate(self) -> Generation:
        if self.decoding is None:
            return Generation("", [], FinishReason.LENGTH)
        made = await syscalls.generate(self.file.fd, prompt=self.prompt, decoding=self.decoding)
        await self.cache.keep(self.file)
        return made

    async def chunks(self) -> AsyncIterator[Chunk]:
        if self.decoding is None:
            yield Chunk(finish=FinishReason.LENGTH)
            return
        fd = await syscalls.stream(self.file.fd, prompt=self.prompt, decoding=self.decoding)
        while True:
            chunk = await syscalls.read(fd)
            if chunk.finish is not None:  # whoever has read that may go
                await self.cache.keep(self.file)
            yield chunk
            if chunk.finish is not None:
                return


async def branch(
    prompt: Sequence[int], n: int, decoding: Decoding | None, cache: Cache, first_index: int = 0
) -> list[Branch]:
    """`n` ways to go on after `prompt`, which is computed once. With a seed, choice i has the seed + i."""
    base, rest = await cache.begin(prompt, leave=N_EARLY if n == 1 else 1)
    if rest:
        return [Branch(first_index, base, rest, decoding, cache)]
    return await fork(base, n, decoding, cache, first_index)


async def fork(base: KVFile, n: int, decoding: Decoding | None, cache: Cache, first_index: int) -> list[Branch]:
    """`n` ways to go on after what `base` has read."""
    files = [base] if n == 1 else [await base.fork() for _ in range(n)]
    return [Branch(first_index + i, file, [], _reseeded(decoding, i), cache) for i, file in enumerate(files)]


def _reseeded(decoding: Decoding | None, i: int) -> Decoding | None:
    if decoding is None or decoding.sampling.seed is None:
        return decoding
    seed = (decoding.sampling.seed + i + 2**63) % 2**64 - 2**63
    return replace(decoding, sampling=replace(decoding.sampling, seed=seed))


async def for_each(branches: list[Branch], run: Callable[[Branch], Awaitable[T]]) -> list[T]:
    """`run` on all branches at the same time. The first error is raised as it is."""
    if len(branches) == 1:
        return [await run(branches[0])]
    return await asyncio.gather(*(run(b) for b in branches))


# --- answers ----------------------------------------------------------------------------------------------------


async def envelope(prefix: str, kind: str, model_name: str) -> dict[str, Any]:
    """The fields that every object of one response begins with."""
    name = f"{prefix}-{int(await random() * 2**53):014x}"
    return {"id": name, "object": kind, "created": int(datetime.now(UTC).timestamp()), "model": model_name}


async def usage(n_prompt: int, n_sampled: int, cache: Cache) -> dict[str, Any]:
    """Tokens as OpenAI counts them: the stop token was sampled, so it is a token of the completion."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_sampled,
        "total_tokens": n_prompt + n_sampled,
        "prompt_tokens_details": {"cached_tokens": await cache.n_cached()},
    }


class Names:
    """The text of single tokens, asked for once each."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    async def of(self, token: int) -> str:
        name = self._names.get(token)
        if name is None:
            name = self._names[token] = await model.detokenize([token])
        return name

    async def best(self, found: TokenLogprob) -> list[tuple[str, float]]:
        """The likeliest alternatives."""
        return [(await self.of(token), logprob) for token, logprob in found.top]
