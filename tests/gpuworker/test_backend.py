"""What every body of a worker refuses: one bad number at a time in an otherwise good batch."""

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gpuworker.backend import Facts, StepError, check, rows
from gpuworker.wire import Ask, Batch, BatchHead, Draw, Row
from sdk.abi.errors import Errno
from sdk.abi.values import ModelInfo, Sampling

VOCAB = 1 << 22  # 8 rows of raw logits fill an answer
MODEL = ModelInfo("m", "f", "llama", 1, "float32", VOCAB, 64, 16, 1, [2], has_chat_template=True)
FACTS = Facts("cpu", "cpu", MODEL, n_pages=10, max_rows=3, max_batch_tokens=20)
DRAW = Draw(Sampling(logit_bias={VOCAB - 1: 1.0}), 2**64 - 1, 63, 2, 1)
ASK = Ask(1, DRAW, 1024, True, [VOCAB - 1], VOCAB - 1, True)
ROW = Row(0, 15, 2, 2, [ASK, Ask(-1)])


def batch(row: Row = ROW, n_rows: int = 1, copies: Sequence[tuple[int, int]] = (), **arrays: list[int]) -> Batch:
    good = {"tokens": [0, VOCAB - 1], "positions": [0, 63], "pages": [9, 0], "history": [0, VOCAB - 1]}
    filled = {name: array("I", values * n_rows) for name, values in (good | arrays).items()}
    return Batch(BatchHead(1, list(copies), [row] * n_rows), **filled)


def changed(**fields: Any) -> Row:
    return msgspec.structs.replace(ROW, **fields)


def asking(**fields: Any) -> Row:
    return changed(asks=[msgspec.structs.replace(ASK, **fields)])


def drawing(**fields: Any) -> Row:
    return asking(draw=msgspec.structs.replace(DRAW, **fields))


def test_the_good_batch_is_good() -> None:
    check(batch(), FACTS)
    check(batch(n_rows=3, copies=[(0, 9)]), FACTS)


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
