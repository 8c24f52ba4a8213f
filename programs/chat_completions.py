"""OpenAI's `/v1/chat/completions`, as a program: the chat is rendered by the model's template and computed once.

Prompt and answer are stored together, so that the next turn of the chat computes only what is new in it.

`request` is the body of the HTTP request. Returns the response, or None after having emitted it in chunks
(`"stream": true`), or an error object with a status.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

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
    read,
    usage,
)
from programs.prefix_cache import Policy, least_saving
from sdk import Chunk, Decoding, Generation, Message, NotSupported, TokenLogprob, emit, model


class ContentPart(Struct):
    type: str
    text: str = ""


class ChatMessage(Struct):
    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None


class ResponseFormat(Struct, frozen=True):
    type: str


class Request(Options, kw_only=True):
    """The fields of a chat request."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None  # None: to the end of the context
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None  # OpenAI's newer name for the same
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=128)] = 0
    tools: list[Any] = []
    tool_choice: Any = "auto"
    response_format: ResponseFormat = ResponseFormat("text")


async def main(request: dict[str, Any]) -> dict[str, Any] | None:
    """Answer a chat as OpenAI's API does."""
    return await answer(request)


async def answer(request: dict[str, Any], policy: Policy = least_saving) -> dict[str, Any] | None:
    """`main`, with a policy for the prefix cache."""
    try:
        r = read(request, Request)
        check(r)
        n_max = r.max_tokens if r.max_completion_tokens is None else r.max_completion_tokens
        decoding = decoding_of(request, r, max_tokens=n_max, logprobs=r.top_logprobs if r.logprobs else None)
        prompt = await model.chat_tokens(message_of(i, m) for i, m in enumerate(r.messages))
        await check_room(len(prompt), "messages")
    except Refused as refused:
        return refused.reply()
    except NotSupported as error:
        return Refused(f"{error.detail}; or use /v1/completions", param="messages").reply()
    chat = Chat(r, prompt, decoding, policy)
    if not r.stream:
        return await chat.whole()
    await chat.stream()
    return None


def check(r: Request) -> None:
    """Raises Refused for what would change the answer and is not done here."""
    if r.tools and r.tool_choice != "none":
        raise Refused("tools are not supported here: write a program that calls them beside the model", param="tools")
    if r.response_format.type != "text":
        raise Refused("response_format: only text is supported", param="response_format")
    if r.top_logprobs and not r.logprobs:
        raise Refused("top_logprobs: expected logprobs to be true as well", param="top_logprobs")


def message_of(i: int, message: ChatMessage) -> Message:
    """A message of plain text. Raises Refused."""
    if message.tool_calls:
        raise Refused(f"messages[{i}].tool_calls: tools are not supported here", param="messages")
    if not isinstance(message.content, list):
        return Message(message.role, message.content or "")
    for part in message.content:
        if part.type != "text":
            raise Refused(f"messages[{i}]: this model reads text, not {part.type}", param="messages")
    return Message(message.role, "".join(part.text for part in message.content))


class Chat:
    """One request under way."""

    def __init__(self, request: Request, prompt: list[int], decoding: Decoding, policy: Policy) -> None:
        self.request = request
        self.prompt = prompt
        self.decoding = decoding
        self.cache = Cache(request, policy)
        self.names = Names()

    async def whole(self) -> dict[str, Any]:
        """The response."""
        branches = await branch(self.prompt, self.request.n, self.decoding, self.cache)
        made = await for_each(branches, Branch.generate)
        choices = [
            await self.choice(b, g, {"message": {"role": "assistant", "content": g.text}})
            for b, g in zip(branches, made, strict=True)
        ]
        head = await envelope("chatcmpl", "chat.completion", self.request.model)
        if self.request.return_token_ids:
            head["prompt_token_ids"] = self.prompt
        return head | {"choices": choices, "usage": await self.usage(sum(g.n_sampled for g in made))}

    async def stream(self) -> None:
        """Emit the response in chunks."""
        head = await envelope("chatcmpl", "chat.completion.chunk", self.request.model)
        counts = self.request.stream_options.include_usage
        if counts:
            head["usage"] = None

        async def one(b: Branch) -> int:
            delta: dict[str, str] = {"role": "assistant"}
            extra = {"prompt_token_ids": self.prompt} if self.request.return_token_ids else {}
            n_sampled = 0
            async for chunk in b.chunks():
                choice = await self.choice(b, chunk, {"delta": delta | {"content": chunk.text}})
                await emit(head | extra | {"choices": [choice]})
                delta, extra = {}, {}
                n_sampled = chunk.n_sampled
            return n_sampled

        n_sampled = await for_each(await branch(self.prompt, self.request.n, self.decoding, self.cache), one)
        if counts:
            await emit(head | {"choices": [], "usage": await self.usage(sum(n_sampled))})

    async def choice(self, b: Branch, made: Generation | Chunk, content: dict[str, Any]) -> dict[str, Any]:
        """A choice, or a chunk of one."""
        choice = {
            "index": b.index,
            **content,
            "logprobs": {"content": await self.logprobs(made.logprobs)} if self.request.logprobs else None,
            "finish_reason": made.finish,
            "stop_reason": made.stop_reason,
        }
        if self.request.return_token_ids:
            choice["token_ids"] = made.tokens
        return choice

    async def logprobs(self, found: list[TokenLogprob]) -> list[dict[str, Any]]:
        shown = []
        for one in found:
            best = [entry(name, logprob) for name, logprob in await self.names.best(one)]
            shown.append(entry(await self.names.of(one.token), one.logprob) | {"top_logprobs": best})
        return shown

    async def usage(self, n_sampled: int) -> dict[str, Any]:
        return await usage(len(self.prompt), n_sampled, self.cache)


def entry(name: str, logprob: float) -> dict[str, Any]:
    """A token as the chat API shows it."""
    return {"token": name, "logprob": logprob, "bytes": list(name.encode())}
