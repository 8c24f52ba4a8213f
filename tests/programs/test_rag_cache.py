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


async def test_popular_documents_are_pinned() -> None:
    async with FakeKernel() as kernel:
        shelf = Shelf(TEXTS, n_kept=1, unpopular="swap")
        await ask(shelf, "aab")
        a, b = (await shelf.files["a"]).fd, (await shelf.files["b"]).fd
        await ask(shelf, "bb")
        pins = [(call.fd, call.ttl) for call in kernel.calls if isinstance(call, calls.Pin)]
        assert pins[0] == (a, None)
        assert pins[-2:] == [(a, 0.0), (b, None)], "who becomes popular is pinned in the place of the least popular"
        assert (b, 0.0) in pins[:-1], "and was not, while it was unpopular"
        assert shelf.pinned == {"b"}


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


async def test_a_document_that_has_changed_is_read_again() -> None:
    async with FakeKernel():
        await ask(Shelf(TEXTS, n_kept=1, unpopular="disk"), "ab")
        shelf = Shelf(TEXTS | {"a": "All new. "}, n_kept=1, unpopular="disk")
        await ask(shelf, "ab")
        assert (shelf.n_read, await kv.stat(f"{DIRECTORY}/a")) == (1, await (await shelf.files["a"]).stat())
        async with await kv.open(f"{DIRECTORY}/a", "r") as file:
            assert await file.read_text() == "All new. "


@pytest.mark.parametrize("errno", [Errno.EIO, Errno.ESTALE])
async def test_what_is_damaged_on_disk_is_read_again(errno: Errno) -> None:
    async with FakeKernel() as kernel:
        await ask(Shelf(TEXTS, n_kept=1, unpopular="disk"), "a")
        kernel.fail("open", errno)
        shelf = Shelf(TEXTS, n_kept=1, unpopular="disk")
        await ask(shelf, "aa")
        assert shelf.n_read == 1
        assert [entry.name for entry in await kv.readdir(DIRECTORY)] == ["a"]


async def test_two_programs_may_share_a_shelf_on_disk() -> None:
    async with FakeKernel():
        shelves = [Shelf(TEXTS, n_kept=1, unpopular="disk") for _ in range(3)]
        await asyncio.gather(*(ask(shelf, "abc") for shelf in shelves))
        assert [entry.name for entry in await kv.readdir(DIRECTORY)] == ["a", "b", "c"]


async def test_documents_may_have_any_name() -> None:
    async with FakeKernel():
        texts = {"../up": "One. ", "a/b": "Two. ", "50%": "Three. "}
        await ask_each(Shelf(texts, n_kept=1, unpopular="disk"))
        again = Shelf(texts, n_kept=1, unpopular="disk")
        await ask_each(again)
        assert again.n_read == 0


async def ask_each(shelf: Shelf) -> None:
    for name in shelf.documents:
        await shelf.answer(name, "What?", 2)


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


async def test_as_a_program_with_documents_of_ones_own() -> None:
    documents = {"a": "All about it. "}
    result = await run_lip(rag_cache.main, requests=["a: What?", "a: Why?"], documents=documents, unpopular="disk")
    assert (len(result["answers"]), result["documents_read"], result["kept"]) == (2, 1, ["a"])


@pytest.mark.parametrize("request_", ["nobody: What?", "no question at all", ""])
async def test_a_request_for_no_document_is_refused_in_a_line(request_: str) -> None:
    with pytest.raises(SystemExit, match="one of these documents: opening hours, tickets"):
        await run_lip(rag_cache.main, requests=["tickets: What?", request_])
