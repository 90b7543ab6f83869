"""Python packages: which versions there are, whether they are those that bczoo needs, and whether they work.

Place in the pipeline: ``bczoo doctor``. Versions are read from the packages' metadata, so nothing has to be imported
for them; what works is tried in another process (:mod:`bczoo.doctor.probe`).
"""

from __future__ import annotations

import json
import platform
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from typing import Any

import bczoo
from bczoo.doctor.finding import BROKEN, NOTE, OK, Finding
from bczoo.doctor.probe import LIBRARIES

PACKAGES = {"google.protobuf": "protobuf", "PIL": "pillow", "yaml": "pyyaml", "pygame": "pygame-ce"}  # by their module
EXTRAS = {
    "vizdoom": ("doom", "the games doom/..., and with them the quick start"),
    "pygame": ("window", "the keyboard window of record"),
    "peft": ("lora", "fine-tuning with LoRA"),
}
BOUNDS = {  # where bczoo is run from its source folder, and no metadata tells them
    "torch": ">=2.8",
    "torchvision": ">=0.23",
    "lightning": ">=2.6,!=2.6.2,!=2.6.3",
    "timm": ">=1.0.31",
    "transformers": ">=5.0",
    "jsonargparse": ">=4.53",
    "av": ">=18",
    "gymnasium": ">=1.0",
    "numpy": ">=2.0",
}
PROBE_S = 300.0  # time for all imports
Probed = dict[str, dict[str, Any]]


def probe(names: tuple[str, ...] = LIBRARIES) -> Probed:
    """Per library ``{"error": ..., "facts": ...}``; libraries behind one that crashes are tried without it."""
    results: Probed = {}
    left = list(names)
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "bczoo.doctor.probe", *left], capture_output=True, text=True, timeout=PROBE_S
            )
            out, how = done.stdout, _ending(done.returncode)
        except subprocess.TimeoutExpired as late:
            out = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
            how = f"did not end within {PROBE_S:.0f} s"
        begun = None
        for line in out.splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue  # what a library prints
            begun = said.get("begin", begun)
            if "end" in said:
                results[said["end"]] = {"error": said["error"], "facts": said["facts"]}
        if begun is None or begun in results:
            for name in left:
                results.setdefault(name, {"error": f"could not be tried: {how}", "facts": {}})
            break
        results[begun] = {"error": f"importing it {how}", "facts": {}}
        left = [name for name in left if name not in results]
    return results


def _ending(status: int) -> str:
    return f"ended Python by {signal.Signals(-status).name}" if status < 0 else f"ended Python with status {status}"


def versions(probed: Probed) -> list[Finding]:
    """Python, bczoo, and every library."""
    python = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    out = [
        Finding("Python", OK if supported else NOTE, python, "" if supported else "install Python 3.11, 3.12 or 3.13"),
        Finding("bczoo", OK, bczoo.__version__),
    ]
    bounds = required()
    for name in LIBRARIES:
        out.append(_library(name, bounds.get(PACKAGES.get(name, name).lower(), ""), probed.get(name, {})))
    return [*out, fit_each_other()]


def _library(name: str, bound: str, probed: dict[str, Any]) -> Finding:
    package, (extra, purpose) = PACKAGES.get(name, name), EXTRAS.get(name, ("", ""))
    version, bad = installed(package), NOTE if extra else BROKEN
    what = f"bczoo[{extra}]" if extra else f"{package}{bound}"
    if version is None:
        return Finding(
            package, bad, f"not installed{f'; needed for {purpose}' if purpose else ''}", f"pip install '{what}'"
        )
    if not allowed(version, bound):
        return Finding(
            package, BROKEN, f"{version}, but bczoo needs {package}{bound}", f"pip install '{package}{bound}'"
        )
    if error := probed.get("error"):
        mend = f"pip install --force-reinstall --no-deps '{package}=={version}'"
        if package in ("torch", "torchvision"):
            mend = "pip install --force-reinstall torch torchvision (both at once, from the same index)"
        return Finding(package, bad, f"{version} does not work: {error}", mend)
    return Finding(package, OK, version)


def fit_each_other() -> Finding:
    """Whether torchvision was built for the torch that there is, by torchvision's own word."""
    torch, torchvision, name = installed("torch"), installed("torchvision"), "torch pair"
    if torch is None or torchvision is None:
        return Finding(name, BROKEN, "torch and torchvision are both needed", "pip install torch torchvision")
    try:
        wanted = [r for r in metadata.requires("torchvision") or [] if r.split("=")[0].strip(" (") == "torch"]
    except metadata.PackageNotFoundError:
        wanted = []
    bound = wanted[0].partition(";")[0].strip().removeprefix("torch").strip(" ()") if wanted else ""
    if allowed(torch.partition("+")[0], bound):
        return Finding(name, OK, f"torchvision {torchvision} is for torch {torch}")
    return Finding(
        name,
        BROKEN,
        f"torchvision {torchvision} is for torch{bound}, and {torch} is installed",
        "pip install --upgrade torch torchvision (both at once, from the same index)",
    )


def devices(probed: Probed) -> list[Finding]:
    """GPUs that torch can use, and why it cannot where there is one."""
    torch = probed.get("torch", {})
    facts = torch.get("facts", {})
    if torch.get("error") or not facts:
        return [Finding("GPU", NOTE, "not known, as torch does not work")]
    found = [Finding("GPU", OK, f"{gpu}{', bfloat16' if facts['bfloat16'] else ''}") for gpu in facts["cuda"]]
    if facts["mps"]:
        found.append(Finding("GPU", OK, "Apple's, as mps; --trainer.accelerator mps"))
    if found:
        return found
    if shutil.which("nvidia-smi") is None:
        return [Finding("GPU", OK, "none; training and play run on the CPU")]
    if facts["built_for_cuda"] is None:
        return [
            Finding(
                "GPU",
                NOTE,
                "there is an NVIDIA driver, but torch was built without CUDA",
                "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu128",
            )
        ]
    said = "; ".join(facts.get("warnings", [])) or "the driver cannot be used"
    return [
        Finding(
            "GPU",
            NOTE,
            f"torch is built for CUDA {facts['built_for_cuda']}, and finds no device: {said[:200]}",
            "update the NVIDIA driver (nvidia-smi says which CUDA it is for), or install a torch for an older CUDA",
        )
    ]


def codecs(probed: Probed) -> Finding:
    """Whether recordings can be written and read: H.264."""
    av = probed.get("av", {})
    if av.get("error"):
        mend = "pip install --force-reinstall av (from PyPI; other builds may lack libx264)"
        return Finding("H.264", BROKEN, f"cannot be written and read: {av['error']}", mend)
    frames = av.get("facts", {}).get("frames", 0)
    return Finding("H.264", OK if frames == 3 else BROKEN, f"written and read, {frames} of 3 frames")


def required() -> dict[str, str]:
    """By package the versions that bczoo needs, such as ``>=2.6,!=2.6.2``."""
    try:
        lines = metadata.requires("bczoo") or []
    except metadata.PackageNotFoundError:
        return dict(BOUNDS)
    bounds = dict(BOUNDS)
    for line in lines:
        requirement = line.partition(";")[0].strip()
        at = min((i for i in map(requirement.find, "<>=!~[") if i > 0), default=len(requirement))
        bound = requirement[requirement.find("]") + 1 :] if "[" in requirement else requirement[at:]
        if bound.strip():
            bounds[requirement[:at].strip().lower()] = bound.strip()
    return bounds


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def allowed(version: str, bound: str) -> bool:
    """Whether a version is within a bound; True where that cannot be told."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    try:
        return not bound or SpecifierSet(bound).contains(version, prereleases=True)
    except ValueError:
        return True
