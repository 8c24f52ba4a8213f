"""What goes with the weights to those who speak text: tokenizer, chat template, special tokens.

Called by the readers of each format. The worker hands these to the kernel as they are; nothing here encodes text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer

from gpuworker.weights.errors import WeightsError


@dataclass(frozen=True, slots=True)
class Assets:
    """Text side of a model. `*_text` are the strings a chat template calls bos_token, eos_token and so on.

    Encode with `add_special_tokens=False` and prepend `bos_token` when `add_bos`: whether a tokenizer.json adds it by
    itself differs from file to file.
    """

    tokenizer_json: str  # complete, as `tokenizers.Tokenizer.from_str` takes it
    chat_template: str | None  # Jinja
    bos_token: int | None
    eos_tokens: tuple[int, ...]  # any of them ends a generation
    bos_text: str | None
    eos_text: str | None
    pad_text: str | None
    unk_text: str | None
    add_bos: bool  # a text prompt begins with bos_token
    n_tokens: int  # the ids that the tokenizer makes are below this


def parse_tokenizer(tokenizer_json: str, where: str) -> Tokenizer:
    """The tokenizer in `tokenizer_json`; raises WeightsError, naming `where`, when it is none."""
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise WeightsError(f"{where}: not a tokenizer.json: {first_line(error)}") from None


def first_line(error: object) -> str:
    """An error's text cut to one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def end_of_turn(special: Iterable[str]) -> list[str]:
    """Those of the special tokens that end a chat turn by their name, whatever a file's metadata says of them."""
    return [text for text in special if text in ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")]
