"""Answer questions about documents, and keep the KV of the popular ones: figure 3 of the paper.

What is computed, and when: a document when it is first asked about, and again only if its KV was let go meanwhile;
then each question and its answer, on a fork. Those who ask about a document that is just being read wait for it.

A server's prefix cache has to guess from the order of prompts what will be asked again. This program knows what it
serves, so it pins the documents that were asked about most often so far: one that is wanted once never takes the
place of one that is wanted all day. That is `Shelf.tidy`, and all of the policy; write your own there. What becomes of
the others is `unpopular`: "drop" closes them, and their pages are free; "swap" keeps them open and lets the kernel move
them to main memory, from where they come back faster than they can be computed; "disk" gives documents names, so that
with `--kv-dir` they are there whenever anybody wants them, and after a restart as well.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal
from urllib.parse import quote

from sdk import DeviceLost, FileExists, FileNotFound, Generation, KVFile, Stale, kv
from sdk.abi.values import Outcome
from sdk.model import TextOrTokens, tokens_of

DOCUMENTS = {
    "opening hours": "The museum is open from Tuesday to Sunday between ten and six. On Mondays it is closed. ",
    "tickets": "A ticket to the museum costs twelve euros. Children and students pay half. Members enter for free. ",
    "the tower": "The tower of the museum was built in 1901. It is ninety metres high and has 380 steps. ",
    "the café": "The café of the museum is on the second floor. It sells coffee, tea, cake and sandwiches. ",
}
REQUESTS = [
    "tickets: What does a ticket cost?",
    "opening hours: When is it closed?",
    "tickets: Who pays half?",
    "the tower: How high is it?",
    "tickets: Who enters for free?",
]


Unpopular = Literal["drop", "swap", "disk"]
DIRECTORY = "~/rag"  # of documents that have names


class Shelf:
    """Documents, some of them with their KV."""

    def __init__(self, documents: Mapping[str, TextOrTokens], n_kept: int, unpopular: Unpopular = "drop") -> None:
        self.documents = documents
        self.n_kept = n_kept
        self.unpopular = unpopular
        self.files: dict[str, asyncio.Task[KVFile]] = {}  # read, or about to be
        self.pinned = set[str]()
        self.n_asked = Counter[str]()
        self.n_using = Counter[str]()
        self.n_read = 0

    async def answer(self, name: str, question: TextOrTokens, max_tokens: int, **how: Any) -> Generation:
        """The answer to a question, on a fork of its document."""
        async with self.borrow(name) as document, await document.fork() as file:
            return await file.generate(question, max_tokens=max_tokens, **how)

    @asynccontextmanager
    async def borrow(self, name: str) -> AsyncIterator[KVFile]:
        """A document that has been read, for as long as the block lasts."""
        self.n_asked[name] += 1
        self.n_using[name] += 1
        if name not in self.files:
            self.files[name] = asyncio.create_task(self.read(name))
        try:
            yield await asyncio.shield(self.files[name])
        finally:
            self.n_using[name] -= 1
            await self.tidy()

    async def read(self, name: str) -> KVFile:
        """Let the model read a document."""
        tokens, path = await tokens_of(self.documents[name]), f"{DIRECTORY}/{quote(name, safe=' ')}"
        if self.unpopular == "disk" and (file := await saved(path, tokens)):
            return file
        self.n_read += 1
        async with await kv.create() as file:
            await file.append(tokens)
            if self.unpopular == "disk":
                with suppress(FileExists):
                    await kv.mkdir(DIRECTORY)
                with suppress(FileExists):  # another program has read it as well
                    return await file.fork(path)
            return await file.fork()

    async def tidy(self) -> None:
        """The policy: the documents that were asked about most often stay, the others go when nobody uses them."""
        popular = heapq.nlargest(self.n_kept, self.files, key=self.n_asked.__getitem__)
        for name, task in list(self.files.items()):
            if not task.done() or self.files.get(name) is not task:
                continue
            if name in popular and task.exception() is None:
                await self.keep(name, task.result())
            elif self.n_using[name]:
                continue
            elif task.exception() is not None:  # whoever asked was told
                del self.files[name]
            else:
                await self.leave(name, task.result())

    async def keep(self, name: str, document: KVFile) -> None:
        """On the device, whatever else wants room there, as far as a quota lets it."""
        if name not in self.pinned:
            self.pinned.add(name)
            if (await document.pin()).outcome is Outcome.REFUSED:  # until there is room
                self.pinned.discard(name)

    async def leave(self, name: str, document: KVFile) -> None:
        """Let a document go, to where `unpopular` says."""
        self.pinned.discard(name)
        if self.unpopular == "swap":
            await document.unpin()
            await document.dontneed()
        else:
            del self.files[name]
            await document.close()


async def saved(path: str, tokens: list[int]) -> KVFile | None:
    """What an earlier run has left of a document. None where there is nothing, or of a text that has changed since,
    of another model, or damaged, all of which it removes."""
    with suppress(FileNotFound):
        with suppress(Stale, DeviceLost):
            file = await kv.open(path, "r")
            if await file.tokens() == tokens:
                return file
            await file.close()
        await kv.unlink(path)
    return None


async def main(
    requests: list[str] = REQUESTS,
    keep: int = 2,
    max_tokens: int = 24,
    unpopular: Unpopular = "drop",
    documents: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Answer requests of the form "document: question", all at once. `keep`: how many documents stay; `documents`:
    their names and texts, by default some about a museum."""
    shelf = Shelf(documents or DOCUMENTS, keep, unpopular)

    async def one(request: str) -> str:
        name, _, question = request.partition(": ")
        return (await shelf.answer(name, f"\nQuestion: {question}\nAnswer:", max_tokens)).text.strip()

    for request in requests:
        if request.partition(": ")[0] not in shelf.documents:
            names = ", ".join(shelf.documents)
            raise SystemExit(f'{request!r}: expected "document: question", with one of these documents: {names}')
    answers = await asyncio.gather(*map(one, requests))
    return {"answers": answers, "documents_read": shelf.n_read, "kept": sorted(shelf.files)}
