import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworker import nulltext
from kernel.language import Language, load_tokenizer
from sdk.abi.errors import InvalidArgument, NotSupported
from sdk.abi.values import Message

ASSETS = nulltext.assets(512)
LANGUAGE = Language(ASSETS)


def with_template(template: str | None) -> Language:
    return Language(msgspec.structs.replace(ASSETS, chat_template=template))


@given(st.text())
def test_text_comes_back(text):
    assert LANGUAGE.decode(LANGUAGE.encode(text, parse_special=False)) == text


@given(st.text(min_size=1))
def test_token_by_token_is_the_same_text(text):
    decoder = LANGUAGE.decoder()
    parts = [decoder.push(t) for t in LANGUAGE.encode(text, parse_special=False)]
    assert "".join(parts) + decoder.flush() == text
    assert not decoder.holds_back


def test_half_a_character_is_held_back():
    decoder = LANGUAGE.decoder()
    first, second = LANGUAGE.encode("é")
    assert decoder.push(first) == ""
    assert decoder.holds_back
    assert decoder.push(second) == "é"


def test_no_unicode_is_refused():
    with pytest.raises(InvalidArgument, match="Unicode"):
        LANGUAGE.encode("\ud800")


def test_a_chat():
    text = LANGUAGE.render([Message("user", "hi")], add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(NotSupported):
        with_template(None).render([Message("user", "hi")], add_generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10**9) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ undefined.attribute }}",
    ],
)
def test_a_template_that_misbehaves_is_a_refusal(template):
    with pytest.raises(InvalidArgument):
        with_template(template).render([Message("user", "hi")], add_generation_prompt=True)


def test_loading_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text(ASSETS.tokenizer_json)
    assert load_tokenizer(tmp_path) == ASSETS.tokenizer_json
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
