"""The doctor: survives what is broken, and says what mends it."""

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from bczoo.cli import main
from bczoo.doctor import command, machine, packages
from bczoo.doctor.finding import BROKEN, NOTE, OK, Finding

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def broken_libraries(tmp_path, monkeypatch):
    """Libraries that lie in front of the real ones."""

    def write(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), *sys.path]))
    return write


def test_each_library_is_tried_alone_and_a_crash_takes_no_other_with_it(broken_libraries):
    broken_libraries(
        timm="raise RuntimeError('operator does not exist')",
        tqdm="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        peft="import sys; sys.exit(3)",
    )
    probed = packages.probe(("yaml", "timm", "tqdm", "no_such_library", "peft", "cloudpickle"))
    assert probed["yaml"]["error"] is None and probed["cloudpickle"]["error"] is None
    assert probed["timm"]["error"] == "RuntimeError: operator does not exist"
    assert "SIGSEGV" in probed["tqdm"]["error"]
    assert probed["peft"]["error"].startswith("SystemExit")
    assert probed["no_such_library"]["error"].startswith("ModuleNotFoundError")


def by_name(findings):
    return {f.name: f for f in findings}


def test_versions_say_what_is_missing_wrong_or_broken(monkeypatch):
    there = dict.fromkeys(packages.LIBRARIES, "99.0")
    there |= {"lightning": "2.6.2", "torchvision": None, "pygame-ce": None, "vizdoom": "1.3", "timm": "1.0.31"}
    monkeypatch.setattr(packages, "installed", lambda name: there.get(name, "99.0"))
    error = {"error": "ImportError: no libGL", "facts": {}}
    found = by_name(packages.versions({"timm": error, "vizdoom": error}))
    assert found["lightning"].status == BROKEN and "!=2.6.2" in found["lightning"].text
    assert found["torchvision"] == Finding(
        "torchvision", BROKEN, "not installed", f"pip install 'torchvision{packages.required()['torchvision']}'"
    )
    assert found["pygame-ce"].status == NOTE and found["pygame-ce"].mend == "pip install 'bczoo[window]'"
    assert found["vizdoom"].status == NOTE and "no libGL" in found["vizdoom"].text
    assert found["timm"].status == BROKEN and "--force-reinstall" in found["timm"].mend
    assert found["torch pair"].status == BROKEN


def test_bounds_are_those_of_the_project():
    text = PROJECT.read_text(encoding="utf-8").partition("dependencies = [")[2].partition("]\n\n")[0]
    stated = {m[1]: m[2] for m in re.finditer(r'"([\w-]+)(?:\[\w+\])?([<>=!][^"]*)"', text)}
    assert {name: stated[name] for name in packages.BOUNDS} == packages.BOUNDS


def test_torch_and_torchvision_that_do_not_fit(monkeypatch):
    there = {"torch": "2.15.0+cpu", "torchvision": "0.30.0"}
    monkeypatch.setattr(packages, "installed", there.get)
    monkeypatch.setattr(packages.metadata, "requires", lambda name: ["numpy", "torch==2.15.0", "scipy; extra == 's'"])
    assert packages.fit_each_other().status == OK
    there["torch"] = "2.14.0"
    wrong = packages.fit_each_other()
    assert wrong.status == BROKEN and "is for torch==2.15.0, and 2.14.0 is installed" in wrong.text
    assert "torch torchvision" in wrong.mend


@pytest.mark.parametrize(
    ("facts", "smi", "status", "text"),
    [
        ({"cuda": ["H200, 139 GiB"], "bfloat16": True}, True, OK, "H200, 139 GiB, bfloat16"),
        ({"mps": True}, False, OK, "--trainer.accelerator mps"),
        ({}, False, OK, "none; training and play run on the CPU"),
        ({}, True, NOTE, "built without CUDA"),
        (
            {"built_for_cuda": "12.8", "warnings": ["driver is too old"]},
            True,
            NOTE,
            "12.8, and finds no device: driver is",
        ),
    ],
)
def test_devices(monkeypatch, facts, smi, status, text):
    none = {"built_for_cuda": None, "cuda": [], "bfloat16": False, "mps": False, "warnings": []}
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if smi else None)
    (found,) = packages.devices({"torch": {"error": None, "facts": none | facts}})
    assert found.status == status and text in found.text and bool(found.mend) == (status == NOTE)
    (unknown,) = packages.devices({"torch": {"error": "ImportError", "facts": {}}})
    assert unknown.status == NOTE


def test_h264():
    assert packages.codecs({"av": {"error": None, "facts": {"frames": 3}}}).status == OK
    broken = packages.codecs({"av": {"error": "UnknownCodecError: libx264", "facts": {}}})
    assert broken.status == BROKEN and "libx264" in broken.text and "pip install" in broken.mend


def test_the_machine(tmp_path, monkeypatch):
    assert "cores" in machine.processor().text
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(0, 0, 500 << 30))
    monkeypatch.setattr(machine, "_write_speed", lambda _: 100e6)
    assert machine.disk("this folder", tmp_path, "go elsewhere").status == OK
    monkeypatch.setattr(machine, "_write_speed", lambda _: 1e6)
    assert machine.disk("this folder", tmp_path, "go elsewhere").mend == "go elsewhere"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(0, 0, 1 << 20))
    assert machine.disk("this folder", tmp_path, "go elsewhere").status == BROKEN
    assert machine.disk("this folder", tmp_path / "missing", "go elsewhere").status == BROKEN
    monkeypatch.setattr(machine, "_memory", lambda: (8 << 30, 1 << 30))
    assert machine.memory().status == NOTE
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert machine.display().status == NOTE
    monkeypatch.setenv("DISPLAY", ":0")
    assert machine.display().status == OK


def test_a_disk_is_really_written_and_left_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROBE_BYTES", 1 << 20)
    assert machine._write_speed(tmp_path) > 0
    assert not list(tmp_path.iterdir())


def test_the_report_and_its_status(monkeypatch, capsys):
    fine = [Finding("torch", OK, "2.15"), Finding("display", NOTE, "none", "xvfb-run")]
    monkeypatch.setattr(command, "examine", lambda: fine)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "-> xvfb-run" in out and out.endswith("All that is needed works; 1 note above.\n")
    monkeypatch.setattr(command, "examine", lambda: [*fine, Finding("av", BROKEN, "not installed", "pip install av")])
    assert main(["doctor"]) == 1
    assert "1 broken; the arrows say what mends it" in capsys.readouterr().out
    assert main(["doctor", "--json", "true"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["broken"] == 1 and told["findings"][-1]["mend"] == "pip install av"
    assert main(["doctor", "--yaml"]) == 2


def test_a_check_that_fails_is_a_finding(monkeypatch):
    monkeypatch.setattr(packages, "probe", dict)
    monkeypatch.setattr(machine, "processor", lambda: 1 / 0)
    monkeypatch.setattr(machine, "disks", list)
    found = by_name(command.examine())
    assert found["processor"].status == BROKEN and "ZeroDivisionError" in found["processor"].text
    assert "GPU" in found and "memory" in found


def test_the_doctor_needs_no_library():
    """It runs where nothing but bczoo and the standard library can be imported."""
    code = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; "
        "import bczoo.doctor.command as c; c.packages.probe = dict; print(c.run([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "" and "Python" in done.stdout and done.stdout.strip().splitlines()[-1] in "01"
