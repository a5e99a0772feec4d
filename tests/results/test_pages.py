"""Tables for the terminal."""

from __future__ import annotations

from raysuite.results.page import table

ROWS = [("name", "gain [95 %]", "spent"), ("a", "0.1 [0.0, 0.2]", "12"), ("bb", "0.3 [0.1, 0.5]", "9")]


def test_a_table_that_fits_is_one() -> None:
    whole = ["name  gain [95 %]     spent", "a     0.1 [0.0, 0.2]  12", "bb    0.3 [0.1, 0.5]  9"]
    assert table(ROWS) == table(ROWS, 27) == whole


def test_a_table_that_is_too_wide_goes_on_below_itself_with_every_cell_whole() -> None:
    assert table(ROWS, 26) == [
        "name  gain [95 %]",
        "a     0.1 [0.0, 0.2]",
        "bb    0.3 [0.1, 0.5]",
        "",
        "name  spent",
        "a     12",
        "bb    9",
    ]


def test_columns_that_name_a_row_are_repeated() -> None:
    assert table(ROWS, 5, names=2) == table(ROWS)  # there is no narrower way to show it
    assert table(ROWS, 5, names=1)[4:] == ["name  spent", "a     12", "bb    9"]
