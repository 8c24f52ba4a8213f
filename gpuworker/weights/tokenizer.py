"""Tokenizers that are not in a tokenizer.json: rebuilt from GGUF metadata, or made of bytes.

Owns the byte-level BPE families by GGUF's name for their pre-tokenizer (`tokenizer.ggml.pre`). Called by gguf_file.py
and dummy.py. A family belongs here only with a known tokenizer.json to compare with; guessing a pre-tokenizer gives
text that is subtly wrong.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from gpuworker.models.config import Token
from gpuworker.weights.errors import WeightsError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # llama.cpp's enum llama_token_type

N_BYTES = 256
END_OF_TEXT = "<|endoftext|>"

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def gpt2() -> pre_tokenizers.PreTokenizer:
    """GPT-2's own expression, which ByteLevel carries."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def smollm() -> pre_tokenizers.PreTokenizer:
    """GPT-2's expression after every digit is set apart."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()])


def split(numbers: str) -> pre_tokenizers.PreTokenizer:
    """The expression of GPT-4's cl100k family, which differ in how they cut `numbers`."""
    expression = Regex(f"{CONTRACTIONS}|{WORDS}|{numbers}|{OTHERS}")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(expression, behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@dataclass(frozen=True)
class Family:
    """What distinguishes one byte-level BPE from another."""

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    nfc: bool = False  # normalize text to Unicode's composed form
    ignore_merges: bool = False  # a word that is a token is taken whole
    add_bos: bool = False  # when the metadata does not say


FAMILIES = {
    "gpt-2": Family(gpt2),
    "smollm": Family(smollm),
    "llama-bpe": Family(lambda: split(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True),
    "qwen2": Family(lambda: split(r"\p{N}"), nfc=True),
}


class Vocabulary(msgspec.Struct):
    """The `tokenizer.ggml.*` keys of a GGUF that matter here, without their prefix."""

    model: str
    tokens: list[str]
    merges: list[str] = []
    token_type: list[int] | None = None
    pre: str = "gpt-2"
    chat_template: str | None = None
    add_bos_token: bool | None = None
    bos_token_id: Token | None = None
    eos_token_id: Token | None = None
    eot_token_id: Token | None = None
    eom_token_id: Token | None = None
    padding_token_id: Token | None = None
    unknown_token_id: Token | None = None

    def of_type(self, *types: int) -> list[str]:
        """Tokens whose type is one of `types`, in order."""
        return [token for token, kind in zip(self.tokens, self.token_type or [], strict=False) if kind in types]

    def text(self, token: int | None) -> str | None:
        """The token's string, if there is such a token."""
        return self.tokens[token] if token is not None and token < len(self.tokens) else None

    def adds_bos(self) -> bool:
        """Whether a text begins with the bos token: as the file says, or else as its family does."""
        family = FAMILIES.get(self.pre)
        return bool(family and family.add_bos) if self.add_bos_token is None else self.add_bos_token


def rebuild(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer that a GGUF describes. Raises WeightsError for a family we do not know or a broken vocabulary."""
    if vocabulary.model != "gpt2":
        raise unsupported(f"tokenizer model {vocabulary.model!r}")
    if vocabulary.pre not in FAMILIES:
        raise unsupported(f"pre-tokenizer {vocabulary.pre!r}")
    family = FAMILIES[vocabulary.pre]
    ids = {token: id_ for id_, token in enumerate(vocabulary.tokens)}
    if len(ids) < len(vocabulary.tokens):
        raise WeightsError("the tokenizer's vocabulary has the same token twice")
    if vocabulary.token_type is not None and len(vocabulary.token_type) != len(ids):
        raise WeightsError(f"the tokenizer has {len(ids)} tokens but {len(vocabulary.token_type)} token types")
    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    for merge in merges:
        if len(merge) != 2 or not all(part in ids for part in (*merge, "".join(merge))):
            raise WeightsError(f"the tokenizer has a merge of unknown tokens: {' '.join(merge)!r}")
    bpe = models.BPE(vocab=ids, merges=merges, ignore_merges=family.ignore_merges)  # type: ignore[arg-type]
    tokenizer = byte_level(bpe, family.pre_tokenizer())
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    if vocabulary.token_type is not None:
        special, plain = vocabulary.of_type(CONTROL, UNKNOWN), vocabulary.of_type(USER_DEFINED)
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return tokenizer


def of_bytes() -> Tokenizer:
    """One token for each of the 256 bytes, and 256 for the end of a sequence: for models that have no tokenizer."""
    bpe = models.BPE(vocab={symbol: byte for byte, symbol in enumerate(byte_symbols())}, merges=[])
    tokenizer = byte_level(bpe, gpt2())
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def byte_level(model: models.BPE, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A tokenizer over bytes, which loses nothing: decoding gives back what was encoded."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_symbols() -> list[str]:
    """GPT-2's stand-ins of the 256 bytes, in their order: printable Latin-1 is itself, the others follow U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = itertools.count(0x100)
    return [chr(byte if byte in printable else next(free)) for byte in range(N_BYTES)]


def unsupported(what: str) -> WeightsError:
    """The error for a tokenizer that cannot be rebuilt."""
    return WeightsError(
        f"{what} is not supported (known: {', '.join(FAMILIES)}); pass the model's own with --tokenizer PATH"
    )
