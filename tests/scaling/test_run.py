"""A grid of sizes: its commands, the order of the sweep, what it takes, and two sizes trained for real."""

import shlex

import pytest
import yaml
from command_line import bczoo, here, own_arguments, recordings  # noqa: F401

from bczoo.core.configs import find
from bczoo.core.errors import UserError
from bczoo.scaling.grid import Grid, Job
from bczoo.scaling.points import read_sources
from bczoo.scaling.run import run

SIZES = {
    "w16": {"model.width": 16, "trainer.max_steps": 100},
    "w32": {"model.width": 32, "trainer.max_steps": 100},
    "w64": {"model.width": 64, "trainer.max_steps": 50},
}


def grid(**changed):
    given = {"base": "bc_cnn_quickstart", "sizes": SIZES, "out": "runs/g", "rates": (0.004, 0.002, 0.001)}
    return Grid(**given | changed)


@pytest.fixture
def trained(monkeypatch):
    """Losses by folder: what is in here counts as done."""
    losses = {}
    monkeypatch.setattr(Job, "done", property(lambda job: str(job.folder) in losses))
    monkeypatch.setattr(Job, "loss", lambda job: losses[str(job.folder)])
    return losses


def names(jobs):
    return [str(job.folder).removeprefix("runs/g/") for job in jobs]


def test_the_sweep_goes_from_size_to_size_and_runs_follow_their_rate(trained):
    g = grid()
    todo, done = g.ready()
    assert names(todo) == [f"sweep/w16-lr{rate:g}" for rate in (0.004, 0.002, 0.001)] and not done
    assert {job.steps for job in todo} == {20}
    trained |= {"runs/g/sweep/w16-lr0.004": 1.2}
    assert names(g.ready()[0]) == ["sweep/w16-lr0.002", "sweep/w16-lr0.001"]
    trained |= {"runs/g/sweep/w16-lr0.002": 1.0, "runs/g/sweep/w16-lr0.001": 1.1}
    todo, done = g.ready()
    assert names(todo) == ["w16", "sweep/w32-lr0.002"] and len(done) == 3
    assert todo[0].rate == 0.002 and todo[0].steps == 100
    trained |= {"runs/g/sweep/w32-lr0.002": 0.9}
    assert names(g.ready()[0]) == ["w16", "sweep/w32-lr0.001"]
    trained |= {"runs/g/sweep/w32-lr0.001": 0.8, "runs/g/w16": 0.7}
    assert names(g.ready()[0]) == ["w32", "sweep/w64-lr0.001"]
    trained |= {"runs/g/sweep/w64-lr0.001": 0.8, "runs/g/w32": 0.6, "runs/g/w64": 0.5}
    assert names(g.ready()[0]) == []


def test_one_rate_is_taken_without_a_sweep(trained):
    assert names(grid(rates=(0.003,)).ready()[0]) == ["w16", "w32", "w64"]


def test_options_are_laid_over_the_base_as_on_the_command_line():
    g = grid(settings={"model.lr_scheduler": "bczoo.WarmupConstant", "data.batch_size": 3, "trainer.devices": [0]})
    config = g.config("w64")
    assert config["model"]["init_args"]["width"] == 64 and config["data"]["init_args"]["batch_size"] == 3
    assert config["model"]["init_args"]["lr_scheduler"] == {"class_path": "bczoo.WarmupConstant"}
    words = g.main("w64", 0.002).command
    assert words[:3] == ("fit", "--config", "bc_cnn_quickstart")
    for option, value in (("--model.width", "64"), ("--trainer.max_steps", "50"), ("--trainer.devices", "[0]")):
        assert words[words.index(option) + 1] == value


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sizes": {}}, "at least one"),
        ({"sizes": {"a/b": {}}}, "'a/b' names a folder"),
        ({"rates": ()}, "rates"),
        ({"sweep": 0.0}, "sweep"),
        ({"base": "bc_cnn_quickstar"}, "did you mean"),
    ],
)
def test_what_is_no_grid_is_refused(changed, said):
    with pytest.raises(UserError, match=said):
        grid(**changed)


def test_shipped_grids_say_what_they_take_and_print_their_commands(here, capsys):  # noqa: F811
    assert bczoo("scaling", "run", "--config", "scaling/smoke", "--dry_run", "true") == 0
    said = capsys.readouterr().out
    assert "| w16 " in said and "at most 6 runs" in said and not list(here.iterdir())
    for name, jobs in (("scaling/smoke", 2), ("scaling/bc_cnn_doom", 5)):
        assert bczoo("scaling", "run", "--config", name, "--print_commands", "true") == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == jobs and all(shlex.split(line)[:2] == ["bczoo", "fit"] for line in lines)
        with pytest.raises(SystemExit) as exit:  # the command is one that bczoo fit takes
            bczoo(*shlex.split(lines[0])[1:], "--print_config")
        assert exit.value.code == 0
        settings = yaml.safe_load(capsys.readouterr().out)
        assert settings["model"]["init_args"]["lr_scheduler"]["class_path"].endswith("WarmupConstant")
        grid_of = yaml.safe_load(find(name).read_text())
        assert settings["model"]["init_args"]["width"] == next(iter(grid_of["sizes"].values()))["model.width"]


def test_two_sizes_are_trained_and_read(here, recordings, capsys):  # noqa: F811
    sizes = {f"w{w}": {"model.width": w, "trainer.max_steps": 6} for w in (16, 32)}
    settings = {
        "data.root": str(recordings),
        "data.source": None,
        "data.batch_size": 2,
        "model.layers": 1,
        "model.lr_scheduler": "bczoo.WarmupConstant",
        "trainer.val_check_interval": 6,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "play": False,
    }
    run("bc_cnn_quickstart", sizes, "runs/g", [0.002], settings=settings, workers=2)
    said = capsys.readouterr().out
    assert "| runs/g/w32 |" in said and "bczoo scaling fit runs/g/w16 runs/g/w32" in said
    curves = read_sources(["runs/g/w16", "runs/g/w32"]).curves
    assert curves[0].params < curves[1].params and curves[0].tokens[-1] <= 6 * 2 * 8
    before = (here / "runs/g/w16/checkpoints/last.ckpt").stat().st_mtime_ns
    run("bc_cnn_quickstart", sizes, "runs/g", [0.002], settings=settings, workers=2)
    assert (here / "runs/g/w16/checkpoints/last.ckpt").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds a run of another command"):
        run("bc_cnn_quickstart", sizes, "runs/g", [0.001], settings=settings, workers=2)
