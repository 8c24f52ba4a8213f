import pytest

from kernel import dispatch
from kernel.dispatch import checked
from sdk import syscalls
from sdk.abi import calls
from sdk.abi.errors import InvalidArgument, NotSupported
from sdk.abi.table import Syscall
from sdk.abi.values import Sampling, Want


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (calls.Pred(fd="3"), "pred"),
        (calls.Pred(fd=3, tokens=[1, 2.5]), "tokens[1]"),
        (calls.Pred(fd=3, tokens=[-1]), "tokens[0]"),
        (calls.Pred(fd=3, want=Want(top_k=-1)), "top_k"),
        (calls.Pred(fd=3, want=Want(sample=Sampling(temperature=-1.0))), "temperature"),
        (calls.Pred(fd=3, want=Want(sample=Sampling(top_p=0.0))), "top_p"),
        (calls.Pred(fd=3, want=Want(sample=Sampling(seed=2**63))), "seed"),
        (calls.Sleep(seconds=-1.0), "seconds"),
        (calls.Send(channel="", message=1), "channel"),
        (calls.Send(channel="c", message=object()), "send"),
        (calls.Truncate(fd=3, n_tokens=-1), "n_tokens"),
        (calls.Open(path=None), "path"),
    ],
)
def test_arguments_have_their_types_and_ranges(call, words):
    with pytest.raises(InvalidArgument) as error:
        checked(call)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_call_shares_nothing_with_its_caller():
    tokens = [1, 2]
    call = checked(calls.Pred(fd=3, tokens=tokens))
    tokens.append(3)
    assert call.tokens == [1, 2]


def test_two_handlers_are_a_mistake():
    with pytest.raises(ValueError, match="two handlers"):
        dispatch.handles(calls.GetPid)(lambda kernel, process, call: 0)


async def test_outside_a_program_nothing_is_there():
    with pytest.raises(NotSupported, match="lip run"):
        await syscalls.getpid()


async def test_a_call_that_is_not_in_the_table(house):
    from sdk.abi.trap import trap

    class Unknown(Syscall[int], frozen=True, kw_only=True):
        pass

    async def main():
        try:
            await trap(Unknown())
        except NotSupported as e:
            return e.errno

    assert await house.value(main) == "ENOSYS"


async def test_a_bug_in_a_handler_stops_the_kernel(make_house, monkeypatch):
    monkeypatch.setitem(dispatch.HANDLERS, calls.GetPid, lambda kernel, process, call: 1 / 0)

    async def main():
        await syscalls.getpid()

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        async with make_house() as house:
            process = house.start(main)
            error = await house.kernel.panicked
            assert isinstance(error, ZeroDivisionError)
            process.end(1, "the test is over")
            await process.wait_exit()
