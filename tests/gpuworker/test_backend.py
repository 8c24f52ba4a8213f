"""What every body of a worker refuses: one bad number at a time in an otherwise good batch."""

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gpuworker.backend import (
    MAX_CONTENTS_BYTES,
    Facts,
    StepError,
    chain,
    check,
    check_fetch,
    check_store,
    drawn_by,
    rows,
)
from gpuworker.serve import MAX_MESSAGE_BYTES
from gpuworker.wire import Answer, Ask, Batch, BatchHead, Draw, Edit, Row, RowDone
from sdk.abi.errors import Errno
from sdk.abi.values import ModelInfo, Sampling

VOCAB = 1 << 22  # 8 rows of raw logits fill an answer
MODEL = ModelInfo("m", "f", "llama", 1, "float32", VOCAB, 64, 16, 1, [2], has_chat_template=True)
FACTS = Facts("cpu", "cpu", MODEL, n_pages=10, n_host_pages=5, page_bytes=99, max_rows=3, max_batch_tokens=20)
DRAW = Draw(Sampling(logit_bias={VOCAB - 1: 1.0}), 2**64 - 1, 63, 2, 1)
ASK = Ask(1, DRAW, 1024, True, [VOCAB - 1], VOCAB - 1, True)
ROW = Row(0, 15, 2, 2, [ASK, Ask(-1)])


def batch(row: Row = ROW, n_rows: int = 1, copies: Sequence[tuple[int, int]] = (), **arrays: list[int]) -> Batch:
    good = {"tokens": [0, VOCAB - 1], "positions": [0, 63], "pages": [9, 0], "history": [0, VOCAB - 1]}
    filled = {name: array("I", values * n_rows) for name, values in (good | arrays).items()}
    return Batch(BatchHead(1, list(copies), [row] * n_rows), **filled)


def moving(out: Sequence[tuple[int, int]] = (), back: Sequence[tuple[int, int]] = (), **fields: Any) -> Batch:
    """The good batch uses pages 9 and 0, and copies 5 to 6."""
    moves = {"moves_out": list(out), "moves_in": list(back)}
    good = batch(copies=[(5, 6)], **fields)
    return Batch(msgspec.structs.replace(good.head, **moves), good.tokens, good.positions, good.pages, good.history)


def editing(*edits: Edit, **fields: Any) -> Batch:
    """The good batch with edits; a page has 16 slots."""
    good = moving(**fields)
    return Batch(
        msgspec.structs.replace(good.head, edits=list(edits)), good.tokens, good.positions, good.pages, good.history
    )


def changed(**fields: Any) -> Row:
    return msgspec.structs.replace(ROW, **fields)


def asking(**fields: Any) -> Row:
    return changed(asks=[msgspec.structs.replace(ASK, **fields)])


def drawing(**fields: Any) -> Row:
    return asking(draw=msgspec.structs.replace(DRAW, **fields))


def test_the_good_batch_is_good() -> None:
    check(batch(), FACTS)
    check(batch(n_rows=3, copies=[(0, 9)]), FACTS)
    check(batch(changed(chained=True)), FACTS)
    check(moving(out=[(1, 4), (8, 0)], back=[(1, 2), (2, 3)]), FACTS)
    check(editing(Edit(9, 0, 1, 0, 16), Edit(9, 3, 2, 13, 3, 63), Edit(6, 3, 2, 0, 13, -63)), FACTS)


def test_a_batch_of_moves_alone_is_good() -> None:
    check(Batch(BatchHead(1, [], [], 0, [(9, 0)], [(1, 0)]), *(array("I") for _ in range(4))), FACTS)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (batch(n_rows=4), "4 rows"),
        (batch(tokens=[1] * 21), "21 new tokens"),
        (batch(tokens=[0, VOCAB]), "token 4194304 is outside 0…4194303"),
        (batch(positions=[0, 64]), "position 64"),
        (batch(pages=[10, 0]), "page 10"),
        (batch(history=[0, VOCAB]), "history 4194304"),
        (batch(copies=[(0, 10)]), "page of a copy 10"),
        (batch(copies=[(-1, 0)]), "page of a copy -1"),
        (batch(changed(chained=True), tokens=[1, 0]), "0 in its place"),
        (batch(Row(0, 1, 0, 1, chained=True), tokens=[], positions=[], pages=[0]), "has a new token"),
        (moving(out=[(10, 0)]), "page of a move 10 is outside"),
        (moving(back=[(0, -1)]), "page of a move -1"),
        (moving(out=[(1, 5)]), "host page of a move 5 is outside"),
        (moving(back=[(-1, 1)]), "host page of a move -1"),
        (moving(out=[(1, 0), (1, 1)]), "moved twice"),
        (moving(out=[(1, 0)], back=[(1, 1)]), "moved twice"),
        (moving(out=[(1, 0), (2, 0)]), "moved twice"),
        (moving(out=[(1, 0)], back=[(0, 2)]), "moved twice"),
        (moving(out=[(9, 0)]), "page 9 is moved and used"),
        (moving(back=[(0, 0)]), "page 0 is moved and used"),
        (moving(out=[(5, 0)]), "page 5 is moved and used"),
        (moving(back=[(0, 6)]), "page 6 is moved and used"),
        (editing(Edit(10, 0, 1, 0, 1)), "page of an edit 10"),
        (editing(Edit(0, 0, -1, 0, 1)), "page of an edit -1"),
        (editing(Edit(0, 0, 1, 0, 0)), "n=0.* a page has slots 0…15"),
        (editing(Edit(0, 14, 1, 0, 3)), "a page has slots 0…15"),
        (editing(Edit(0, 0, 1, 14, 3)), "a page has slots 0…15"),
        (editing(Edit(0, -1, 1, 0, 1)), "a page has slots 0…15"),
        (editing(Edit(0, 0, 1, 0, 1, 64)), "so far apart"),
        (editing(Edit(0, 0, 1, 0, 1, -64)), "so far apart"),
        (editing(Edit(0, 0, 1, 0, 3), Edit(2, 0, 1, 2, 1)), "edited twice"),
        (editing(Edit(0, 0, 1, 0, 3), Edit(1, 0, 2, 2, 1)), "page 1 is read and written"),
        (editing(Edit(0, 0, 0, 8, 3)), "page 0 is read and written"),
        (editing(Edit(0, 0, 1, 0, 3), out=[(1, 0)]), "page 1 is moved and used"),
        (editing(Edit(3, 0, 1, 0, 3), out=[(3, 0)]), "page 3 is moved and used"),
        (batch(changed(n_before=-1)), "negative"),
        (batch(changed(n_new=-1)), "negative"),
        (batch(changed(n_before=63)), "65 tokens"),
        (batch(changed(n_pages=1)), "1 pages of 16 for 17 tokens"),
        (batch(changed(n_pages=3)), "3 pages of 16"),
        (batch(changed(n_before=0, n_pages=1)), "an empty file predicts nothing"),
        (batch(changed(asks=[Ask(0)] * 24)), "24 asks"),
        (batch(changed(asks=[Ask(1, logits=True)] * 9)), "bytes of raw logits"),
        (batch(asking(offset=2)), "asks after new token 2 of 2"),
        (batch(asking(offset=-2)), "asks after new token -2"),
        (batch(asking(top_k=1025)), "top_k 1025"),
        (batch(asking(top_k=-1)), "top_k -1"),
        (batch(asking(logprobs_of=[VOCAB])), "logprobs_of 4194304"),
        (batch(asking(logprobs_of=[-1])), "logprobs_of -1"),
        (batch(asking(target=VOCAB)), "target 4194304"),
        (batch(drawing(sampling=Sampling(logit_bias={VOCAB: 1.0}))), "logit_bias 4194304"),
        (batch(drawing(seed=-1)), "seed"),
        (batch(drawing(seed=2**64)), "seed"),
        (batch(drawing(position=-1)), "seed, position"),
        (batch(drawing(n_generated=3)), "history"),
        (batch(drawing(n_generated=-1)), "history"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_bad_number(bad: Batch, complaint: str) -> None:
    with pytest.raises(StepError, match=complaint) as e:
        check(bad, FACTS)
    assert e.value.errno == Errno.EINVAL
    assert "\n" not in e.value.detail


def test_rows_share_the_arrays_in_order() -> None:
    draw = Draw(Sampling(), 0, 0)
    several = [
        Row(1, 0, 2, 1, [Ask(0, msgspec.structs.replace(draw, n_history=2)), Ask(1)]),
        Row(2, 5, 0, 1, [Ask(-1)]),
        Row(3, 20, 1, 2, [Ask(0, msgspec.structs.replace(draw, n_history=1))]),
    ]
    arrays = ([10, 11, 12], [0, 1, 20], [4, 5, 6, 7], [20, 21, 22])
    first, second, third = rows(Batch(BatchHead(1, [], several), *(array("I", a) for a in arrays)))
    assert [v.row.job for v in (first, second, third)] == [1, 2, 3]
    assert [list(v.tokens) for v in (first, second, third)] == [[10, 11], [], [12]]
    assert [list(v.positions) for v in (first, second, third)] == [[0, 1], [], [20]]
    assert [list(v.pages) for v in (first, second, third)] == [[4], [5], [6, 7]]
    assert [[list(h) for h in v.histories] for v in (first, second, third)] == [[[20, 21], []], [[]], [[22]]]


def test_without_a_host_tier_nothing_can_move() -> None:
    facts = Facts("cpu", "cpu", MODEL, n_pages=10, n_host_pages=0, page_bytes=99, max_rows=3, max_batch_tokens=20)
    with pytest.raises(StepError, match="host page of a move 0 does not exist: this worker has none"):
        check(moving(out=[(1, 0)]), facts)


def several(*chained: bool, tokens: Sequence[int]) -> Batch:
    """Rows of two new tokens each; jobs 10, 11 …"""
    table = [Row(10 + i, 0, 2, 1, chained=c) for i, c in enumerate(chained)]
    n = len(table)
    return Batch(BatchHead(1, [], table), *(array("I", a) for a in (tokens, [0, 1] * n, range(n), list[int]())))


def test_a_chain_fills_in_what_was_drawn() -> None:
    drawn = {10: 71, 11: 72, 12: 73}
    sent = several(False, True, True, tokens=[5, 6, 0, 7, 0, 8])
    filled = chain(sent, drawn)
    assert list(filled.tokens) == [5, 6, 72, 7, 73, 8]
    assert list(sent.tokens) == [5, 6, 0, 7, 0, 8]
    assert (filled.head, filled.positions, filled.pages) == (sent.head, sent.positions, sent.pages)
    unchained = several(False, tokens=[0, 6])
    assert chain(unchained, drawn) is unchained


def test_a_chain_to_nothing_is_refused() -> None:
    with pytest.raises(StepError, match="job 11: it is chained") as e:
        chain(several(True, True, tokens=[0, 6, 0, 7]), {10: 71})
    assert e.value.errno == Errno.EINVAL


def test_a_chain_goes_on_from_the_last_draw_of_a_job() -> None:
    done = [
        RowDone(1, [Answer(sample=5), Answer(sample=6), Answer(target_logprob=-1.0)]),
        RowDone(2, [Answer(top_tokens=[7], top_logprobs=[-1.0])]),
        RowDone(3, []),
        RowDone(4, [Answer(sample=0)]),
    ]
    assert drawn_by(done) == {1: 6, 4: 0}


BIG = Facts("cpu", "cpu", MODEL, n_pages=10, n_host_pages=5, page_bytes=16 << 20, max_rows=3, max_batch_tokens=20)


def test_pages_and_contents_that_are_taken() -> None:
    check_fetch([], FACTS)
    check_fetch([9, 0, 14, 9], FACTS)
    check_fetch([0, 1, 2, 3], BIG)
    check_store([9, 14], bytes(198), FACTS)
    check_store([9, 0], memoryview(bytes(198)), FACTS)


@pytest.mark.parametrize(
    ("pages", "contents", "complaint"),
    [
        ([15], bytes(99), "page 15 is outside"),
        ([-1], bytes(99), "page -1"),
        ([1, 1], bytes(198), "a page is stored twice"),
        ([1, 2], bytes(197), "197 bytes for 2 pages of 99: send 198"),
        ([1], memoryview(array("Q", bytes(96))), "96 bytes"),
    ],
)
def test_contents_that_are_refused(pages: list[int], contents: bytes | memoryview, complaint: str) -> None:
    with pytest.raises(StepError, match=complaint) as e:
        check_store(pages, contents, FACTS)
    assert e.value.errno == Errno.EINVAL


def test_what_does_not_fit_into_one_frame_is_refused() -> None:
    assert MAX_CONTENTS_BYTES <= MAX_MESSAGE_BYTES
    with pytest.raises(StepError, match="5 pages at once; this worker takes 4 pages of 16777216 bytes"):
        check_fetch([0, 1, 2, 3, 4], BIG)
