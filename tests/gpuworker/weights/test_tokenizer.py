"""Rebuilt tokenizers: nothing is lost, and ids are those of byte-level BPE written out in Python."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import regex
from gguf import GGUFReader
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpuworker.weights import checkpoint, tokenizer
from gpuworker.weights.errors import WeightsError

# The expressions as their authors published them.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TEXT = st.text() | st.lists(
    st.sampled_from(
        ["the ", " and", "don't", "WE'LL", "1234567", "é", "é", "東京", "🎼👩‍👩‍👧", "\n\n", "  \t ", "\r\n", "٣", "½"]
    )
).map("".join)


def split_smollm(text: str) -> list[str]:
    """Each digit by itself, then GPT-2's words between the digits."""
    parts = ["".join(group) for _, group in itertools.groupby(text, str.isnumeric)]
    parts = [piece for part in parts for piece in (part if part.isnumeric() else [part])]
    return [word for part in parts for word in regex.findall(GPT2, part)]


SPLITS = {
    "gpt-2": lambda text: regex.findall(GPT2, text),
    "smollm": split_smollm,
    "llama-bpe": lambda text: regex.findall(LLAMA3, text),
    "qwen2": lambda text: regex.findall(QWEN2, text),
}


PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
SYMBOLS = [chr(byte) if byte in PRINTABLE else chr(256 + OTHERS.index(byte)) for byte in range(256)]


def bpe(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding (Sennrich et al., 2016): apply the earliest learned merge until none applies."""
    parts = [SYMBOLS[byte] for byte in word.encode()]
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            step = 2 if tuple(parts[i : i + 2]) == best else 1
            merged.append("".join(parts[i : i + step]))
            i += step
        parts = merged
    return parts


def of_family(pre: str, tiny_tokens: Any) -> Tokenizer:
    tokens, merges, special = tiny_tokens
    kinds = [tokenizer.CONTROL if token in special else tokenizer.NORMAL for token in tokens]
    vocabulary = tokenizer.Vocabulary(model="gpt2", tokens=tokens, merges=merges, token_type=kinds, pre=pre)
    return Tokenizer.from_str(tokenizer.rebuild(vocabulary).to_str())


@pytest.fixture(scope="module")
def families(tiny_tokens: Any) -> dict[str, Tokenizer]:
    return {pre: of_family(pre, tiny_tokens) for pre in SPLITS}


@given(TEXT)
def test_decoding_gives_back_what_was_encoded(families: dict[str, Tokenizer], text: str) -> None:
    for pre, each in families.items():
        if pre != "qwen2":  # which composes accents first (NFC)
            assert each.decode(each.encode(text).ids, skip_special_tokens=False) == text, pre


@given(TEXT)
@example("I'VE 12345 tokens,\r\n\r\n  and   more  ")
def test_ids_are_those_of_the_algorithm(families: dict[str, Tokenizer], tiny_tokens: Any, text: str) -> None:
    tokens, merges, _ = tiny_tokens
    ids = {token: id_ for id_, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    text = families["qwen2"].normalizer.normalize_str(text)
    for pre, each in families.items():
        expected = [ids[part] for word in SPLITS[pre](text) for part in bpe(word, ranks)]
        assert each.encode(text).ids == expected, pre


def test_special_tokens_are_whole_and_skipped(families: dict[str, Tokenizer]) -> None:
    for each in families.values():
        ids = each.encode("<|im_start|>the<|im_end|>").ids
        assert (ids[0], ids[-1], len(ids)) == (1, 2, 3)
        assert each.decode(ids) == "the"


def test_user_defined_tokens_are_whole_and_kept(tiny_tokens: Any) -> None:
    tokens, merges, _ = tiny_tokens
    kinds = [tokenizer.NORMAL] * len(tokens) + [tokenizer.USER_DEFINED]
    vocabulary = tokenizer.Vocabulary(model="gpt2", tokens=[*tokens, "<tool>"], merges=merges, token_type=kinds)
    rebuilt = tokenizer.rebuild(vocabulary)
    assert rebuilt.encode("<tool>").ids == [len(tokens)]
    assert rebuilt.decode([len(tokens)]) == "<tool>"


def test_adding_bos_follows_the_family_unless_told() -> None:
    def adds(pre: str, told: bool | None = None) -> bool:
        return tokenizer.Vocabulary(model="gpt2", tokens=[], pre=pre, add_bos_token=told).adds_bos()

    assert (adds("llama-bpe"), adds("smollm"), adds("unknown")) == (True, False, False)
    assert (adds("llama-bpe", False), adds("smollm", True)) == (False, True)


def test_unknown_families_are_named() -> None:
    with pytest.raises(WeightsError, match=r"'tekken' is not supported \(known: gpt-2, smollm.*--tokenizer PATH"):
        tokenizer.rebuild(tokenizer.Vocabulary(model="gpt2", tokens=[], pre="tekken"))


@pytest.fixture(scope="module")
def of_bytes() -> Tokenizer:
    return Tokenizer.from_str(tokenizer.of_bytes().to_str())


@given(TEXT)
def test_bytes(of_bytes: Tokenizer, text: str) -> None:
    assert of_bytes.encode(text).ids == list(text.encode())
    assert of_bytes.decode(list(text.encode())) == text


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    return Tokenizer.from_str(checkpoint.load_assets("smollm2-135m-instruct").tokenizer_json)


@pytest.mark.model
def test_real_ids_are_those_of_the_algorithm(real: Tokenizer, smollm2_gguf: Path) -> None:
    fields = GGUFReader(smollm2_gguf).fields
    ids = {token: id_ for id_, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(fields["tokenizer.ggml.merges"].contents())}
    text = Path(regex.__file__).with_name("_regex_core.py").read_text()[:4000] + "Ünïcode 東京 🎼 x²+½ 12,345.678\n\n\n"
    expected = [ids[part] for word in split_smollm(text) for part in bpe(word, ranks)]
    assert real.encode(text).ids == expected


# The real vocabulary has no token for 21 of the bytes: six control characters, and what planes 4 to 11 begin with,
# where Unicode has no characters yet.
IN_VOCABULARY = st.text(st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters="\4\6\23\24\26\35"))


@pytest.mark.model
@given(IN_VOCABULARY)
@example("Ünïcode 東京 🎼👩‍👩‍👧 x²+½ 12,345.678\n\n\n")
def test_real_decoding_gives_back_what_was_encoded(real: Tokenizer, text: str) -> None:
    assert real.decode(real.encode(text).ids, skip_special_tokens=False) == text
