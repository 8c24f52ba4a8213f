"""What the client understands, and what it refuses."""

import pytest
from starlette.responses import JSONResponse, Response

from perf.client import model_of
from perf.harness import Failed
from tests.perf.conftest import FIRST_WORD, complete, events


async def test_an_answer_that_comes_whole(api, server):
    answer = await api.once([1, 2, 3, 4], 3, return_token_ids=True)
    assert (answer.n_out, answer.n_choices, answer.n_cached) == (3, 1, 2)
    assert answer.ids == [FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + 2]
    assert answer.e2e_s > 0
    asked = {"model": "toy", "prompt": [1, 2, 3, 4], "max_tokens": 3, "temperature": 0, "seed": 0, "ignore_eos": True}
    assert server.asked == [asked | {"return_token_ids": True}]


async def test_an_answer_that_comes_in_chunks(api):
    answer = await api.stream([1, 2], 3)
    assert (answer.n_out, answer.n_cached) == (3, 1)
    assert answer.text == f"{FIRST_WORD} {FIRST_WORD + 1} {FIRST_WORD + 2} "
    assert 0 < answer.ttft_s <= answer.e2e_s
    assert 0 <= answer.tpot_s <= answer.e2e_s


async def test_chunks_are_counted_where_the_server_counts_nothing(api, server):
    server.answer = lambda body: events('{"choices": [{"text": "a"}]}', "[DONE]")
    assert (await api.stream([1], 1)).n_out == 1


async def test_the_model_is_the_first_that_is_named(api):
    assert await model_of(api._http) == "toy"


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (JSONResponse({"error": {"message": "no such\nmodel"}}, 404), "the server answered 404: .*no such"),
        (JSONResponse({"error": "overloaded"}), "overloaded"),
        (Response("<html>", 502), "answered 502: <html>"),
        (Response("not json"), "answered 200: not json"),
    ],
)
async def test_an_error_is_one_line(api, server, response, said):
    server.answer = lambda body: response
    for ask in (api.once, api.stream):
        with pytest.raises(Failed, match=said) as failed:
            await ask([1], 1)
        assert "\n" not in str(failed.value)


async def test_an_error_in_the_middle_of_a_stream(api, server):
    server.answer = lambda body: events('{"choices": [{"text": "a"}]}', '{"error": "lost"}')
    with pytest.raises(Failed, match="lost"):
        await api.stream([1], 2)


async def test_a_stream_without_a_choice(api, server):
    server.answer = lambda body: events("[DONE]")
    with pytest.raises(Failed, match="no choice"):
        await api.stream([1], 2)


async def test_a_stream_that_is_none(api, server):
    server.answer = lambda body: complete(body | {"stream": False})
    with pytest.raises(Failed, match="does not stream"):
        await api.stream([1], 2)
