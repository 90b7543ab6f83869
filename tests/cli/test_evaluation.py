"""What validate and test print of metrics that nothing tells."""

import math

from bczoo.cli.evaluation import evaluation_table, why_unknown


def test_what_is_unknown_is_explained():
    nan = math.nan
    table = evaluation_table(
        {"val/loss": 1.25, "val/change_perplexity/keys": nan, "val/relative_cross_entropy/keys": nan}
    )
    assert "nan" not in table and "n/a" in table and "1.2500" in table
    assert "val/change_perplexity/keys: no change points: no action in the validation recordings differs" in table
    assert "val/relative_cross_entropy/keys: the actions of a group are always the same" in table
    assert why_unknown({"test/loss": nan}) == [
        "\ntest/loss: no step of the test recordings has an action to learn from."
    ]
    assert why_unknown({"val/loss": 1.0}) == []
