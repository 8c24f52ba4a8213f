"""The null worker under a mask: what it says depends on what is visible, and on nothing that is not."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker.backend import StepError
from gpuworker.stepcost import StepCost
from gpuworker.wire import Ask, Row
from sdk.abi.visible import MAX_RUNS
from tests.gpuworker.test_null import ALL, File, answer_of, null

TEXT = [40, 41, 42, 43, 44, 45, 46, 47, 48, 49]


class Masked(File):
    """A file whose new tokens see these runs."""

    visible: list = []

    def row(self, tokens, asks):
        return msgspec.structs.replace(super().row(tokens, asks), visible=self.visible)


def masked(before, after, visible):
    """The answer after `after`, which sees `visible` of `before`."""
    file = Masked(null(), iter(range(64)))
    if before:
        file.append(before)
    file.visible = visible
    return file.append(after, ALL)


def test_a_mask_changes_the_answer():
    plain = answer_of([*TEXT, 50])
    window = masked(TEXT, [50], [(-3, None)])
    sinks = masked(TEXT, [50], [(0, 2), (-3, None)])
    assert window != plain != sinks != window


def test_what_is_not_seen_does_not_matter():
    other = [99, *TEXT[1:7], *TEXT[7:]]
    assert masked(TEXT, [50], [(-3, None)]) == masked(other, [50], [(-3, None)])
    assert masked(TEXT, [50], [(0, 1), (-3, None)]) != masked(other, [50], [(0, 1), (-3, None)])


def test_what_hides_nothing_is_no_mask():
    assert masked(TEXT, [50], [(0, None)]) == answer_of([*TEXT, 50]) == masked(TEXT, [50], [(0, 4), (-8, None)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 511), min_size=1, max_size=20),
    st.lists(st.integers(1, 5), max_size=20),
    st.lists(st.tuples(st.integers(-9, 9), st.one_of(st.none(), st.integers(-9, 9))), min_size=1, max_size=4),
)
def test_chunks_do_not_matter(tokens, cuts, runs):
    """With `verify`, which also looks at the tails that masked tokens leave."""
    whole = masked([], tokens, runs)
    file, at = Masked(null(), iter(range(64))), 0
    file.visible = runs
    for cut in cuts:
        if len(tokens) - at - cut < 1:
            break
        file.append(tokens[at : at + cut])
        at += cut
    assert file.append(tokens[at:], ALL) == whole
    assert file.append([], msgspec.structs.replace(ALL, offset=-1)) == whole
    file.visible = []
    assert file.append([7], ALL) == answer_of([*tokens, 7]), "later tokens see all again"


def test_too_many_runs_are_refused():
    with pytest.raises(StepError, match="visible runs"):
        masked(TEXT, [50], [(0, 1)] * (MAX_RUNS + 1))


def test_a_window_costs_what_it_reads():
    row = Row(0, 8000, 1, 501, [Ask(0)])
    narrow = msgspec.structs.replace(row, visible=[(0, 4), (-256, None)])
    cost = StepCost(context_s=1.0)
    assert (cost.of([row]), cost.of([narrow])) == (8001.0, 260.0)
