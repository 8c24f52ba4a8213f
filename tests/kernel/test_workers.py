import pytest

from gpuworker.wire import WIRE_HASH, Hello, Refused, Welcome
from kernel.workers import State, Workers
from sdk.abi.errors import KernelPanic
from sdk.abi.values import ModelInfo


def welcome(**changes):
    model = {
        "name": "m", "fingerprint": "f" * 32, "architecture": "llama", "n_parameters": 1, "dtype": "float32",
        "vocab_size": 10, "max_model_len": 100, "page_size": 16, "bos_token": None, "eos_tokens": [],
        "has_chat_template": False,
    }  # fmt: skip
    schema = changes.pop("schema", WIRE_HASH)
    return Welcome(schema, "w", 1, "cpu", "cpu", ModelInfo(**(model | changes)), 10, 0, 10, 10, 10)


def ready(workers, name):
    worker = workers.join(name, 0.0)
    worker.welcome = welcome()
    workers.welcome(worker)
    return worker


def test_refusals_name_what_differs():
    workers = Workers()
    assert workers.refusal(welcome()) is None
    ready(workers, "a")
    assert workers.refusal(welcome()) is None
    assert "another model: n (eeee" in workers.refusal(welcome(name="n", fingerprint="e" * 32))
    assert "bfloat16" in workers.refusal(welcome(dtype="bfloat16"))
    assert "50" in workers.refusal(welcome(max_model_len=50))
    assert "schema old" in workers.refusal(welcome(schema="old"))
    assert workers.refusal(Refused(WIRE_HASH, "busy")) == "busy"
    assert "kernel" in workers.refusal(Hello(WIRE_HASH, "k"))


def test_a_new_file_goes_where_least_is_to_do():
    workers = Workers()
    assert workers.place({}) is None
    a, b = ready(workers, "a"), ready(workers, "b")
    assert workers.place({"a": (1, 0.0), "b": (0, 0.9)}) == "b"
    assert workers.place({"a": (1, 0.1), "b": (1, 0.2)}) == "a"
    b.move("drain")
    assert workers.place({"a": (5, 0.9), "b": (0, 0.0)}) == "a"
    a.move("lost")
    assert workers.place({"a": (0, 0.0), "b": (0, 0.0)}) is None
    b.move("ready")
    assert workers.place({"a": (0, 0.0), "b": (5, 0.9)}) == "b"


def test_health_is_what_was_seen():
    workers = Workers()
    worker = ready(workers, "a")
    assert not workers.healthy
    worker.answered = True
    assert workers.healthy
    worker.move("lost")
    assert not workers.healthy


def test_impossible_moves_are_panics():
    workers = Workers()
    worker = workers.join("a", 0.0)
    assert worker.state is State.JOINING
    with pytest.raises(KernelPanic, match="drain"):
        worker.move("drain")
    with pytest.raises(KernelPanic, match="twice"):
        workers.join("a", 0.0)


def test_what_was_served_is_served_for_ever():
    """Files outlive workers, and cannot go on with another model."""
    workers = Workers()
    ready(workers, "a").move("lost")
    workers.remove("a")
    assert "another model" in workers.refusal(welcome(fingerprint="e" * 32))


def test_whoever_did_not_listen_has_heard_no_silence():
    workers = Workers()
    a = ready(workers, "a")
    workers.excuse(7.0)
    assert a.heard == 7.0
