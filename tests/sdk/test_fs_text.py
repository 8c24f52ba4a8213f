"""How KV files are written for people."""

import pytest

from sdk.fs_text import branches, counted, duration, size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1536, "1.5K"), (23 << 20, "23M"), (5 << 30, "5.0G"), (1 << 50, "1.0P")],
)
def test_size(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text


def test_the_bars_of_a_tree_end_where_a_directory_does() -> None:
    found = [
        {"name": name, "kind": "directory" if name in ("a", "a/b", "c") else "file", "n_tokens": 1}
        for name in ("a", "a/b", "a/b/x", "a/y", "c", "c/z")
    ]
    assert branches(found) == [
        "├── a/",
        "│   ├── b/",
        "│   │   └── x  (1 token)",
        "│   └── y  (1 token)",
        "└── c/",
        "    └── z  (1 token)",
    ]


def test_a_plural_is_one() -> None:
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert counted(2, "directory", "directories") == "2 directories"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.9, "59s"), (60, "1m"), (7199, "1h"), (86400 * 400, "400d")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
