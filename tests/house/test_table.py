"""The table of system calls is whole: documented, handled, and never renumbered."""

from kernel import dispatch
from kernel.boot import SYSTEM_CALLS  # noqa: F401  (imports the handlers)
from sdk.abi.table import TABLE, by_name, fields_of

# A number belongs to its name for ever: programs may be older than the kernel.
NUMBERS = {
    "pred": 1, "generate": 2, "stream": 3, "read": 4, "model_info": 5, "tokenize": 6, "detokenize": 7,
    "apply_chat_template": 8,
    "open": 20, "create": 21, "close": 22, "unlink": 23, "stat": 24, "fstat": 25, "readdir": 26, "mkdir": 27,
    "rename": 28, "fork": 29, "truncate": 30, "tokens": 31, "positions": 32,
    "link": 33, "chmod": 34, "chown": 35, "umask": 36, "extract": 37, "merge": 38, "splice": 39,
    "lock": 40, "unlock": 41, "pin": 42, "advise": 43, "sync": 44, "quota": 45, "df": 46, "dup": 47,
    "spawn": 50, "wait": 51, "exit": 52, "kill": 53, "getpid": 54, "sleep": 55, "now": 56, "random": 57, "rusage": 58,
    "priority": 59, "limits": 60,
    "send": 70, "recv": 71, "emit": 72, "input": 73,
}  # fmt: skip


def test_numbers_are_kept():
    assert {e.name: e.nr for e in TABLE.values()} == NUMBERS


def test_every_call_has_a_man_page():
    assert [e.name for e in TABLE.values() if len(e.doc) < 20] == []


def test_every_call_has_a_handler():
    assert dispatch.missing() == []
    assert set(dispatch.HANDLERS) == set(TABLE)


def test_the_errnos_a_man_page_names_are_listed():
    for entry in TABLE.values():
        listed = {str(e) for e in entry.errnos}
        named = {w.strip(".:,()") for w in entry.doc.split() if w.strip(".:,()").startswith("E") and w.isupper()}
        assert named - listed <= {"EOF"}, entry.name


def test_arguments_come_with_types():
    assert list(fields_of(by_name("pred").call)) == ["fd", "tokens", "positions", "want", "visible"]
