"""The RAG cache over the fake kernel: which documents are read, and which stay."""

import asyncio

import pytest

from programs import rag_cache
from programs.rag_cache import DIRECTORY, Shelf
from sdk import Errno, SyscallError, kv
from sdk.abi import calls
from sdk.testing import FakeKernel, run_lip

TEXTS = {name: f"All about {name}. " for name in "abcdef"}


async def ask(shelf: Shelf, names: str) -> None:
    for name in names:
        await shelf.answer(name, "What?", 2)


async def test_popular_documents_stay() -> None:
    async with FakeKernel():
        shelf = Shelf(TEXTS, n_kept=2)
        await ask(shelf, "aaabbcdefc")
        assert (sorted(shelf.files), shelf.n_read) == (["a", "b"], 7)
        await ask(shelf, "ab")
        assert shelf.n_read == 7
        await ask(shelf, "ccc")
        assert sorted(shelf.files) == ["a", "c"], "who becomes popular takes the place of the least popular"


async def test_those_who_ask_at_once_wait_for_one_reading() -> None:
    async with FakeKernel() as kernel:
        shelf = Shelf(TEXTS, n_kept=1)
        await asyncio.gather(*(ask(shelf, name) for name in "aabbaabb"))
        assert shelf.n_read == 2
        assert len(shelf.files) == 1
        preds = [call.tokens for call in kernel.calls if isinstance(call, calls.Pred)]
        assert sorted(preds) == [list(TEXTS["a"].encode()), list(TEXTS["b"].encode())]


async def test_an_answer_is_that_of_a_fresh_file() -> None:
    async with FakeKernel():
        shelf = Shelf(TEXTS, n_kept=1)
        made = [await shelf.answer("a", "What?", 5, ignore_eos=True) for _ in range(3)]
        async with await kv.create() as file:
            alone = await file.generate(TEXTS["a"] + "What?", max_tokens=5, ignore_eos=True)
        assert made == [alone] * 3


async def test_the_unpopular_may_stay_open() -> None:
    async with FakeKernel() as kernel:
        shelf = Shelf(TEXTS, n_kept=1, unpopular="swap")
        await ask(shelf, "aabcabc")
        assert (sorted(shelf.files), shelf.n_read) == (["a", "b", "c"], 3)
        advised = [call.fd for call in kernel.calls if isinstance(call, calls.Advise)]
        assert (await shelf.files["a"]).fd not in advised
        assert (await shelf.files["b"]).fd in advised


async def test_the_unpopular_may_have_names() -> None:
    async with FakeKernel():
        shelf = Shelf(TEXTS, n_kept=1, unpopular="disk")
        await ask(shelf, "aabcabc")
        assert (sorted(shelf.files), shelf.n_read) == (["a"], 3)
        assert [entry.name for entry in await kv.readdir(DIRECTORY)] == ["a", "b", "c"]
        again = Shelf(TEXTS, n_kept=1, unpopular="disk")
        await ask(again, "abc")
        assert again.n_read == 0, "it outlives the program"


async def test_what_cannot_be_read_is_tried_again() -> None:
    async with FakeKernel() as kernel:
        shelf = Shelf(TEXTS, n_kept=1)
        kernel.fail("pred", Errno.ENOSPC)
        with pytest.raises(SyscallError):
            await ask(shelf, "a")
        await ask(shelf, "a")
        assert list(shelf.files) == ["a"]


async def test_who_gives_up_leaves_the_reading_to_the_others() -> None:
    async with FakeKernel():
        shelf = Shelf(TEXTS, n_kept=1)
        impatient, patient = (asyncio.create_task(ask(shelf, "a")) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        assert shelf.n_read == 1
        assert impatient.cancelled()


async def test_as_a_program() -> None:
    result = await run_lip(rag_cache.main)
    assert len(result["answers"]) == len(rag_cache.REQUESTS)
    assert (result["documents_read"], len(result["kept"])) == (3, 2)
