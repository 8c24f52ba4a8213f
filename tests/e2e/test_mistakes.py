"""What a user can get wrong: each is one line on stderr, a status that is not 0, and never a traceback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
HOUSE = Path(__file__).resolve().parents[2]


def run(module, *args, **environ):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SYMPHONY_")} | environ
    command = [str(Path(sys.executable).with_name("lip"))] if module == "lip" else [sys.executable, "-m", module]
    return subprocess.run(
        [*command, *args], cwd=HOUSE, env=env, capture_output=True, text=True, timeout=120,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def one_line(done, *words):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, done.stderr
    return done.stderr.strip().splitlines()


@pytest.fixture
def kernel(start_kernel):
    return start_kernel("--backend", "null")


@pytest.fixture
def program(tmp_path):
    def write(source):
        path = tmp_path / "p.py"
        path.write_text(source)
        return str(path)

    return write


def test_an_option_of_the_kernel_behind_run():
    assert len(one_line(run("kernel", "run", "--no-http", "p.py"), "--no-http comes before `run`")) == 1
    assert "Usage: python -m kernel run" in run("kernel", "run", "--help").stdout


def test_lip_run(kernel, program, tmp_path):
    missing = str(tmp_path / "nowhere.py")
    assert len(one_line(kernel.lip("run", missing), "nowhere.py")) == 1
    assert len(one_line(kernel.lip("run", program("x = 1")), "main")) == 1
    assert len(one_line(kernel.lip("run", program("def main(): pass")), "async def")) == 1
    assert len(one_line(kernel.lip("run", program("async def main(:")), "p.py:1")) == 1
    typed = program("async def main(n: int): return n")
    assert len(one_line(kernel.lip("run", typed, "--n", "many"), "n", "int")) == 1
    assert len(one_line(kernel.lip("run", typed), "n")) == 1
    assert len(one_line(kernel.lip("run", typed, "--m", "1"), "m")) == 1
    assert len(one_line(kernel.lip("run", "no_such_program"), "no_such_program")) == 1
    assert kernel.lip("run", typed, "--n", "3").returncode == 0


def test_kernel_run(program):
    one_line(run("kernel", "--backend", "null", "run", "nowhere.py"), "nowhere.py")
    done = run("kernel", "--backend", "null", "run", program("async def main(n: int = 2): return n * 2"), "--n", "4")
    assert (done.returncode, done.stdout.strip()) == (0, "8")


def test_a_port_in_use(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = str(s.getsockname()[1])
        one_line(run("kernel", "--backend", "null", "--port", port, "--socket", str(tmp_path / "d" / "k")), port)


def test_two_kernels_on_one_socket(kernel):
    one_line(run("kernel", "--backend", "null", "--port", "0", "--socket", str(kernel.socket)), str(kernel.socket))


def test_models_that_are_none(tmp_path):
    corrupt = tmp_path / "corrupt.gguf"
    corrupt.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    arguments = ("--port", "0", "--socket", str(tmp_path / "d" / "k"), "--model")
    one_line(run("kernel", *arguments, str(corrupt)), "corrupt.gguf")
    one_line(run("kernel", *arguments, str(tmp_path / "none.gguf")), "none.gguf")
    one_line(run("gpuworker", "--listen", "tcp://127.0.0.1:0", "--model", str(corrupt)), "corrupt.gguf")


def test_workers_that_do_not_fit(kernel, start_worker, tmp_path):
    config = tmp_path / "tiny"
    config.mkdir()
    _, address = start_worker("--backend", "null", "--max-model-len", "100")
    one_line(kernel.lip("worker", "attach", address), "100")
    one_line(kernel.lip("worker", "attach", "tcp://127.0.0.1:9"), "tcp://127.0.0.1:9")
    one_line(kernel.lip("worker", "attach", "nonsense"), "nonsense")
    one_line(
        run("kernel", "--no-local-worker", "--no-http", "--worker", "tcp://127.0.0.1:9",
            "--socket", str(tmp_path / "d" / "k"), SYMPHONY_ATTACH_TIMEOUT_S="1"), "tcp://127.0.0.1:9",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--dtype", "float12"], "float12"),
        (["--attention", "magic"], "magic"),
    ],
)
def test_options(arguments, word, tmp_path):
    one_line(run("kernel", "--port", "0", "--socket", str(tmp_path / "d" / "k"), *arguments), word)


def test_without_a_kernel(tmp_path):
    environ = {"SYMPHONY_SOCKET": str(tmp_path / "none.sock")}
    for command in (["ps"], ["ls"], ["worker", "list"], ["kill", "1"]):
        assert len(one_line(run("lip", *command, **environ), "python -m kernel")) == 1
