"""What an interrupted training says is kept, and what is done again."""

# ruff: noqa: F811 - fixtures are named as arguments
import crash
import pytest
from command_line import fit, here, own_arguments, recordings  # noqa: F401


@pytest.mark.parametrize(
    ("every", "told"),
    [
        (
            50,
            "no checkpoint was written yet (every 50 steps), so the same command trains from the first step; "
            "recordings stay as they are",
        ),
        (1, "the same command goes on from step 2"),
    ],
)
def test_before_and_after_the_first_checkpoint(recordings, here, capsys, every, told):
    options = ["--trainer.callbacks.every_n_train_steps", every]
    with pytest.raises(crash.PowerCut):
        fit(recordings, *options, "--trainer.callbacks+=crash.CrashAt", "--trainer.callbacks.step=2")
    assert f"interrupted at step 2; {told}\n" in capsys.readouterr().out
