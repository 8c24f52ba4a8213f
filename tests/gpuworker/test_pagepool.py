import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker import pagepool
from gpuworker.pagepool import PagePool, tail_number

SHAPE = {"n_layers": 3, "page_size": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_size": 5}


def pool(num_pages: int = 10, dtype: torch.dtype = torch.float32) -> PagePool:
    """Each page, and its tails, are filled with the page's number."""
    made = PagePool(num_pages, **SHAPE, dtype=dtype, device="cpu")
    for page in range(num_pages):
        made.kv[page] = page
        made.tails[page] = page
    return made


def contents(made: PagePool) -> list[int]:
    """The number that fills each page; fails if a page is a mixture or disagrees with its tails."""
    for page in range(made.num_pages):
        assert made.kv[page].unique().tolist() == made.tails[page].unique().tolist()
        assert made.kv[page].unique().numel() == 1
    return made.tails[:, 0, 0].int().tolist()


def test_starts_as_zeros():
    made = PagePool(6, **SHAPE, dtype=torch.bfloat16, device="cpu")
    assert made.kv.shape == (6, 3, 2, 4, 2, 8)
    assert made.tails.shape == (6, 2, 5)
    assert made.kv.dtype == made.tails.dtype == torch.bfloat16
    assert not made.kv.any()
    assert not made.tails.any()


def test_a_page_of_all_layers_is_one_piece_of_memory():
    made = pool()
    page = made.kv[3]
    assert page.is_contiguous()
    assert page.data_ptr() == made.kv.data_ptr() + 3 * page.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_page_is_what_is_allocated(dtype):
    made = pool(7, dtype)
    assert PagePool.bytes_per_page(**SHAPE, dtype=dtype) * 7 == made.kv.nbytes + made.tails.nbytes


def test_copy_takes_blob_and_tails():
    made = pool(4)
    made.copy([(1, 3)])
    assert contents(made) == [0, 1, 2, 1]


def test_a_source_may_be_shared():
    made = pool(5)
    made.copy([(1, 2), (1, 4), (0, 3)])
    assert contents(made) == [0, 1, 1, 0, 1]


def test_all_copies_read_the_state_before():
    made = pool(4)
    made.copy([(0, 1), (1, 2), (2, 0)])
    assert contents(made) == [2, 0, 1, 3]


def test_copying_nothing_changes_nothing():
    made = pool(4)
    made.copy([])
    assert contents(made) == [0, 1, 2, 3]


@pytest.mark.parametrize("pair", [(0, 4), (4, 0), (-1, 0), (0, -1)])
def test_a_page_that_does_not_exist_is_refused(pair):
    made = pool(4)
    with pytest.raises(ValueError, match="does not exist: the pool has pages 0 to 3"):
        made.copy([(0, 1), pair])
    assert contents(made) == [0, 1, 2, 3]


def test_two_copies_to_one_page_are_refused():
    with pytest.raises(ValueError, match="destination of two copies"):
        pool(4).copy([(0, 1), (2, 1)])


@given(data=st.data(), chunk=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_copy_is_a_parallel_assignment(data, chunk):
    made = pool(12)
    destinations = data.draw(st.lists(st.integers(0, 11), unique=True))
    pairs = [(data.draw(st.integers(0, 11)), destination) for destination in destinations]
    want = list(range(12))
    for source, destination in pairs:
        want[destination] = source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pagepool, "COPY_CHUNK", chunk)
        made.copy(pairs)
    assert contents(made) == want


def test_tails_are_stored_and_loaded_by_number():
    made = pool(4)
    made.save_tails(torch.tensor([4, 1]), torch.tensor([[7.0] * 5, [9.0] * 5]))
    assert made.tails[:, :, 0].tolist() == [[0, 9], [1, 1], [7, 2], [3, 3]]
    assert made.load_tails(torch.tensor([1, 2, 4, 4]))[:, 0].tolist() == [9, 1, 7, 7]


def test_tails_of_lengths_that_follow_each_other_are_two():
    assert [tail_number(page=3, n_tokens=n) for n in (48, 49, 50)] == [6, 7, 6]
    assert {tail_number(page, n) for page in range(4) for n in (1, 2)} == set(range(8))


def test_loaded_tails_are_a_copy():
    made = pool(4)
    made.load_tails(torch.tensor([2])).fill_(100)
    assert made.tails[1, 0, 0] == 1


def test_no_tails_at_all():
    made = pool(4)
    none = torch.tensor([], dtype=torch.int64)
    made.save_tails(none, torch.empty(0, 5))
    assert made.load_tails(none).shape == (0, 5)


def test_bytes_are_views():
    made = pool(3)
    kv, tails = made.as_bytes()
    kv[1], tails[1] = kv[2], tails[2]
    assert contents(made) == [0, 2, 2]
