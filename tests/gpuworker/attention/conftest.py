import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """These tensors are too small to share, and threads that wait for each other stall on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
