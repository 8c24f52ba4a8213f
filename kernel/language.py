"""The model's language: text to tokens and back, and its chat template.

Made from the assets that a worker sends, so the kernel reads no model files (`--tokenizer` replaces the
tokenizer). Templates come with models, so they are rendered in jinja's immutable sandbox, with a bound on what
they may produce. Called by the system calls and by `kernel/generate.py`; knows neither files nor processes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer

from gpuworker.wire import Assets
from sdk.abi.errors import InvalidArgument, NotSupported
from sdk.abi.values import Message

N_PROMPT_CHARS_MAX = 8 << 20  # of a rendered template


class Language:
    """Tokenizer and template of one model."""

    def __init__(self, assets: Assets) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_str(assets.tokenizer_json)
        self._special = assets.special_tokens
        bos = assets.special_tokens.get("bos_token")
        self._bos = self._tokenizer.token_to_id(bos) if assets.add_bos and bos else None
        self._template: jinja2.Template | None = None
        if assets.chat_template:
            environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
            environment.globals["raise_exception"] = _raise
            self._template = environment.from_string(assets.chat_template)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Tokens of `text`. Raises InvalidArgument for text that is no Unicode (lone surrogates)."""
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise InvalidArgument(f"the text is not valid Unicode: {e.reason} at {e.start}") from None
        self._tokenizer.encode_special_tokens = not parse_special
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._bos, *ids] if add_special and self._bos is not None else ids

    def decode(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `tokens`; ids the model does not have give nothing."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The chat as the model was trained to see it. Raises NotSupported or InvalidArgument."""
        if self._template is None:
            raise NotSupported("the model has no chat template; build the prompt in the program")
        chat: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
        parts: list[str] = []
        n_chars = 0
        try:
            for part in self._template.generate(
                messages=chat, add_generation_prompt=add_generation_prompt, **self._special
            ):
                n_chars += len(part)
                if n_chars > N_PROMPT_CHARS_MAX:
                    raise InvalidArgument(f"the rendered chat is longer than {N_PROMPT_CHARS_MAX} characters")
                parts.append(part)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as e:
            raise InvalidArgument(f"the chat template refuses these messages: {e}") from None
        return "".join(parts)

    def decoder(self) -> "Decoder":
        """A fresh incremental decoder."""
        return Decoder(self)


class Decoder:
    """Turns tokens into text one by one; special tokens have no text.

    A character may span several tokens, and some tokenizers spell a token by what stands before it, so each new
    text is the difference of two decodings over a short window, held back while it ends in half a character.
    """

    def __init__(self, language: Language) -> None:
        self._language = language
        self._tokens: list[int] = []
        self._start = 0  # of the window
        self._shown = 0  # tokens of which the text is out

    @property
    def holds_back(self) -> bool:
        """Whether the last token left half a character behind."""
        return self._shown < len(self._tokens)

    def push(self, token: int) -> str:
        """The text that `token` completes."""
        self._tokens.append(token)
        return self._take(final=False)

    def flush(self) -> str:
        """What was held back, half characters as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._language.decode(self._tokens[self._start : self._shown], skip_special=True)
        after = self._language.decode(self._tokens[self._start :], skip_special=True)
        if after.endswith("\ufffd") and not final:
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return after[len(before) :]


def load_tokenizer(path: Path) -> str:
    """A tokenizer.json, or the one in a directory. Raises ValueError with one line."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = file.read_text()
        Tokenizer.from_str(text)
    except Exception as e:  # the library raises plain Exception for what it cannot parse
        raise ValueError(f"{file} is no tokenizer.json: {' '.join(str(e).split())}") from None
    return text


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)
