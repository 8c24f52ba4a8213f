"""`sdk.model` over the fake kernel."""

from array import array

from sdk import Message, model
from sdk.testing import FakeKernel


async def test_tokens_and_back() -> None:
    async with FakeKernel():
        tokens = await model.tokenize("héllo<|im_end|>")
        assert await model.detokenize(tokens) == "héllo<|im_end|>"
        assert await model.detokenize(tokens, skip_special=True) == "héllo"
        assert len(await model.tokenize("<|im_end|>", parse_special=False)) == 10


async def test_tokens_of_takes_both() -> None:
    async with FakeKernel() as kernel:
        assert await model.tokens_of("ab") == [97, 98]
        assert await model.tokens_of(array("I", [1, 2])) == [1, 2]
        assert len(kernel.calls) == 1, "token ids need no tokenizer"


async def test_chat_tokens_end_with_the_assistants_header() -> None:
    async with FakeKernel():
        open_end = await model.chat_tokens([("user", "Hi")])
        closed = await model.chat_tokens([Message("user", "Hi")], add_generation_prompt=False)
        assert open_end[: len(closed)] == closed
        assert await model.detokenize(open_end[len(closed) :]) == "<|im_start|>assistant\n"


async def test_info_has_the_context_length() -> None:
    async with FakeKernel(max_model_len=99):
        assert (await model.info()).max_model_len == 99
