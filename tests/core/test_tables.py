"""Markdown tables."""

from bczoo.core.tables import markdown_table

ROWS = [["player", "mean"], ["policy", "1.5"], ["a", "-10.25"]]


def test_padded_and_plain():
    assert markdown_table(ROWS).splitlines() == [
        "| player |   mean |",
        "| ------ | -----: |",
        "| policy |    1.5 |",
        "| a      | -10.25 |",
    ]
    assert markdown_table(ROWS, padded=False).splitlines() == [
        "| player | mean |",
        "|---|---:|",
        "| policy | 1.5 |",
        "| a | -10.25 |",
    ]
