"""How a command of `lip` prints."""

from sdk.command import table


def test_columns_are_as_wide_as_what_is_in_them_and_never_cut(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    table([("ファイル", 7, "x" * 20), ("a [b]:c:", 12345, "")], "NAME", "TOKENS", "LAST", right=("TOKENS",))
    assert capsys.readouterr().out.splitlines() == [
        "NAME      TOKENS  LAST",
        "ファイル       7  " + "x" * 20,
        "a [b]:c:   12345",
    ]


def test_a_table_without_rows_is_its_head(capsys) -> None:
    table([], "NAME", "TOKENS")
    assert capsys.readouterr().out == "NAME  TOKENS\n"
