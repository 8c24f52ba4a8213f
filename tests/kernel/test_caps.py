"""How large batches may be, after some were refused."""

import pytest

from kernel.caps import N_TOKENS_MIN, Caps
from sdk.abi.errors import Errno


def test_a_batch_is_halved_until_one_row_is_alone():
    caps = Caps(8, 100)
    assert not caps.are_lowered
    for n_rows, n_next in ((7, 3), (3, 1)):
        assert caps.lower(n_rows, 100, Errno.EIO)
        assert (caps.n_rows, caps.n_tokens) == (n_next, 100)
    assert not caps.lower(1, 100, Errno.EIO), "this row is at fault"
    assert caps.are_lowered


@pytest.mark.parametrize(("errno", "n_tokens", "n_next"), [(Errno.ENOSPC, 40, 20), (Errno.EINVAL, 40, None)])
def test_a_prompt_that_memory_does_not_suffice_for_is_cut_shorter(errno, n_tokens, n_next):
    caps = Caps(8, 100)
    assert caps.lower(1, n_tokens, errno) is (n_next is not None)
    assert caps.n_tokens == (n_next or 100)
    assert not caps.lower(1, N_TOKENS_MIN, errno), "not shorter than that"


def test_what_goes_well_lifts_them_up_to_what_the_worker_takes():
    caps = Caps(8, 100)
    caps.lower(6, 60, Errno.EIO)
    caps.lower(1, 60, Errno.ENOSPC)
    seen = []
    while caps.are_lowered:
        caps.lift()
        seen.append((caps.n_rows, caps.n_tokens))
    assert seen == [(6, 60), (8, 100)]
