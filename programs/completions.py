"""OpenAI's `/v1/completions`, as a program: each prompt is computed once, and its choices go on from forks.

`request` is the body of the HTTP request. Returns the response, or None after having emitted it in chunks
(`"stream": true`), or an error object with a status.
"""

from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from programs._openai import (
    Branch,
    Cache,
    Names,
    Options,
    Refused,
    branch,
    check_room,
    decoding_of,
    envelope,
    for_each,
    fork,
    read,
    usage,
)
from programs.prefix_cache import Policy, least_saving
from sdk import Chunk, Decoding, Generation, KVFile, TokenLogprob, emit, kv, model
from sdk.abi.values import Token


class Request(Options, kw_only=True):
    """The fields of a completion request."""

    prompt: str | list[str | Token | list[Token]]
    max_tokens: Annotated[int, Meta(ge=0)] = 16
    logprobs: Annotated[int, Meta(ge=0, le=128)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str = ""


async def main(request: dict[str, Any]) -> dict[str, Any] | None:
    """Complete a text as OpenAI's API does."""
    return await answer(request)


async def answer(request: dict[str, Any], policy: Policy = least_saving) -> dict[str, Any] | None:
    """`main`, with a policy for the prefix cache."""
    try:
        r = read(request, Request)
        check(r)
        decoding = decoding_of(request, r, max_tokens=r.max_tokens or None, logprobs=r.logprobs)
        prompts = [await tokens_of(prompt) for prompt in prompts_of(r.prompt)]
        for prompt in prompts:
            await check_room(len(prompt.tokens), "prompt")
    except Refused as refused:
        return refused.reply()
    completion = Completion(r, prompts, decoding if r.max_tokens else None, policy)
    if not r.stream:
        return await completion.whole()
    await completion.stream()
    return None


def check(r: Request) -> None:
    """Raises Refused for what would change the answer and is not done here."""
    if r.best_of is not None and r.best_of != r.n:
        raise Refused("best_of is not supported: ask for n choices with logprobs and keep the best", param="best_of")
    if r.suffix:
        raise Refused("suffix is not supported: a completion comes at the end of its prompt", param="suffix")
    if r.max_tokens == 0 and not r.echo:
        raise Refused("max_tokens: expected at least 1, or 0 together with echo", param="max_tokens")


# --- prompts ----------------------------------------------------------------------------------------------------


class Prompt(NamedTuple):
    text: str | None  # None: it was given as tokens
    tokens: list[int]


def prompts_of(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The prompts of a request, each a text or a list of tokens. Raises Refused."""
    if isinstance(prompt, str):
        return [prompt]
    tokens = [p for p in prompt if isinstance(p, int)]
    if tokens and len(tokens) == len(prompt):
        return [tokens]
    if not prompt or tokens:
        raise Refused("prompt: expected a text, a list of tokens, or a list of either", param="prompt")
    return [p for p in prompt if not isinstance(p, int)]


async def tokens_of(prompt: str | list[int]) -> Prompt:
    """Raises Refused when there is nothing to go on from."""
    if isinstance(prompt, str):
        found = Prompt(prompt, await model.tokenize(prompt, add_special=True))
    else:
        found = Prompt(None, prompt)
    if not found.tokens:
        raise Refused("prompt: it is empty, and this model has no token that begins a text", param="prompt")
    return found


class Part(NamedTuple):
    """A stretch of a choice: its text, its tokens, and their logprobs where they were asked for."""

    text: str
    tokens: list[int]
    logprobs: list[tuple[int, TokenLogprob | None]]  # token and logprob; the first token of a prompt has none


def part_of(made: Generation | Chunk) -> Part:
    return Part(made.text, made.tokens, [(found.token, found) for found in made.logprobs])


# --- the answer -------------------------------------------------------------------------------------------------


class Completion:
    """One request under way."""

    def __init__(self, request: Request, prompts: list[Prompt], decoding: Decoding | None, policy: Policy) -> None:
        self.request = request
        self.prompts = prompts
        self.decoding = decoding
        self.cache = Cache(request, policy)
        self.names = Names()
        self.echoes: list[Part] = []  # one for each prompt, when they are to be echoed

    async def whole(self) -> dict[str, Any]:
        """The response."""
        branches = await self.branches()
        made = await for_each(branches, Branch.generate)
        choices = [await self.choice(b, g, None) for b, g in zip(branches, made, strict=True)]
        head = await envelope("cmpl", "text_completion", self.request.model)
        return head | {"choices": choices, "usage": await self.usage(sum(g.n_sampled for g in made))}

    async def stream(self) -> None:
        """Emit the response in chunks."""
        head = await envelope("cmpl", "text_completion", self.request.model)
        counts = self.request.stream_options.include_usage
        if counts:
            head["usage"] = None

        async def one(b: Branch) -> int:
            n_chars: int | None = None
            n_sampled = 0
            async for chunk in b.chunks():
                choice = await self.choice(b, chunk, n_chars)
                await emit(head | {"choices": [choice]})
                n_chars = (n_chars or 0) + len(choice["text"])
                n_sampled = chunk.n_sampled
            return n_sampled

        n_sampled = await for_each(await self.branches(), one)
        if counts:
            await emit(head | {"choices": [], "usage": await self.usage(sum(n_sampled))})

    async def branches(self) -> list[Branch]:
        """The choices of all prompts, in the order of their indices."""
        n = self.request.n
        found: list[Branch] = []
        for prompt in self.prompts:
            if self.request.echo:
                base, echo = await self.read_aloud(prompt)
                self.echoes.append(echo)
                found += await fork(base, n, self.decoding, self.cache, len(found))
            else:
                found += await branch(prompt.tokens, n, self.decoding, self.cache, len(found))
        return found

    async def read_aloud(self, prompt: Prompt) -> tuple[KVFile, Part]:
        """A file that has read the prompt, and this as a part of the answer (`"echo": true`)."""
        tokens, logprobs = prompt.tokens, self.request.logprobs
        text = await model.detokenize(tokens) if prompt.text is None else prompt.text
        if logprobs is None:
            file, _ = await self.cache.begin(tokens)
            return file, Part(text, tokens, [])
        file = await kv.create()  # all of it is computed: a cache knows no logprobs
        beliefs = await file.pred_all(tokens, at=range(len(tokens) - 1), targets=tokens[1:], top_k=logprobs)
        scored: list[tuple[int, TokenLogprob | None]] = [(tokens[0], None)]
        for token, belief in zip(tokens[1:], beliefs, strict=True):
            assert belief.target_logprob is not None
            scored.append((token, TokenLogprob(token, belief.target_logprob, belief.top(logprobs))))
        await self.cache.keep(file)
        return file, Part(text, tokens, scored)

    async def choice(self, b: Branch, made: Generation | Chunk, n_chars: int | None) -> dict[str, Any]:
        """A choice, or a chunk of one that comes after `n_chars` characters; None: it is the first."""
        r, part = self.request, part_of(made)
        if r.echo and n_chars is None:
            echo = self.echoes[b.index // r.n]
            part = Part(echo.text + part.text, echo.tokens + part.tokens, echo.logprobs + part.logprobs)
        choice = {
            "index": b.index,
            "text": part.text,
            "logprobs": None if r.logprobs is None else await self.logprobs(part, n_chars or 0),
            "finish_reason": made.finish,
            "stop_reason": made.stop_reason,
        }
        if r.return_token_ids:
            choice["token_ids"] = part.tokens
            choice["prompt_token_ids"] = self.prompts[b.index // r.n].tokens if n_chars is None else None
        return choice

    async def logprobs(self, part: Part, offset: int) -> dict[str, Any]:
        """OpenAI's four parallel lists; `offset` is where the part begins in the text of its choice."""
        names = [await self.names.of(token) for token, _ in part.logprobs]
        offsets, best = [], []
        for name, (_, found) in zip(names, part.logprobs, strict=True):
            offsets.append(offset)
            offset += len(name)
            best.append(None if found is None else dict(await self.names.best(found)) | {name: found.logprob})
        return {
            "tokens": names,
            "token_logprobs": [None if found is None else found.logprob for _, found in part.logprobs],
            "top_logprobs": best,
            "text_offset": offsets,
        }

    async def usage(self, n_sampled: int) -> dict[str, Any]:
        return await usage(sum(len(prompt.tokens) for prompt in self.prompts), n_sampled, self.cache)
