"""The model that is served, and its tokens.

Everything here is text and numbers: nothing is computed and no file is touched (that is `sdk.kv`). Every function
raises NoDevice until a worker has brought a model.
"""

from collections.abc import Iterable

from sdk import syscalls
from sdk.abi.values import Message, ModelInfo
from sdk.syscalls import detokenize, tokenize

__all__ = ["ChatMessage", "TextOrTokens", "chat_tokens", "detokenize", "info", "tokenize", "tokens_of"]

TextOrTokens = str | Iterable[int]  # text is tokenized; token ids may be a list or a numpy array
ChatMessage = Message | tuple[str, str]  # a tuple is (role, content)


async def info() -> ModelInfo:
    """Name, sizes, context length and special tokens of the model."""
    return await syscalls.model_info()


async def chat_tokens(messages: Iterable[ChatMessage], *, add_generation_prompt: bool = True) -> list[int]:
    """The tokens of a chat, as the model's own template spells it.

    `add_generation_prompt` ends with the header of the assistant's turn. Raises NotSupported when the model has
    no template and InvalidArgument when the template refuses these messages.
    """
    structs = [m if isinstance(m, Message) else Message(role=m[0], content=m[1]) for m in messages]
    return await syscalls.apply_chat_template(structs, add_generation_prompt=add_generation_prompt)


async def tokens_of(text_or_tokens: TextOrTokens) -> list[int]:
    """Token ids, from text (no begin-of-sequence token is put in front) or from ids."""
    if isinstance(text_or_tokens, str):
        return await tokenize(text_or_tokens)
    return [int(token) for token in text_or_tokens]
