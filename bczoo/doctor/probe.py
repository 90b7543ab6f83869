"""Imports the libraries one by one in a process of its own, and tries what they are needed for.

Place in the pipeline: :mod:`bczoo.doctor.packages` runs this module; a library that takes the interpreter down with it
is the one that was begun and not ended. Every line that is printed is a JSON object: ``{"begin": name}``, then
``{"end": name, "error": ..., "facts": {...}}``.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

LIBRARIES = (
    "numpy", "torch", "torchvision", "torchmetrics", "lightning", "timm", "transformers", "jsonargparse", "safetensors",
    "huggingface_hub", "gymnasium", "google.protobuf", "av", "PIL", "matplotlib", "yaml", "tqdm", "cloudpickle",
    "vizdoom", "pygame", "peft",
)  # fmt: skip


def main(names: list[str]) -> None:
    for name in names:
        _say({"begin": name})
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                module = importlib.import_module(name)
                facts = TRIALS[name](module) if name in TRIALS else {}
            facts |= {"warnings": [str(w.message) for w in told if "driver" in str(w.message).lower()]}
            _say({"end": name, "error": None, "facts": facts})
        except BaseException as error:
            _say({"end": name, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "facts": {}})


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def _torch(torch: Any) -> dict[str, Any]:
    torch.zeros(2, 2) @ torch.zeros(2, 2)
    cuda = torch.cuda.is_available()
    return {
        "built_for_cuda": torch.version.cuda,
        "cuda": [
            f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
            for i in range(torch.cuda.device_count() if cuda else 0)
        ],
        "bfloat16": cuda and torch.cuda.is_bf16_supported(),
        "mps": bool(torch.backends.mps.is_available()),
    }


def _torchvision(torchvision: Any) -> dict[str, Any]:
    import torch

    # an operator in C++, which is not there where the two were built for each other's other versions
    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    return {}


def _av(av: Any) -> dict[str, Any]:
    """Write a few frames as H.264 and read them back."""
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return {"frames": sum(1 for _ in container.decode(video=0))}


def _vizdoom(vizdoom: Any) -> dict[str, Any]:
    vizdoom.DoomGame()
    return {}


TRIALS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": _torch,
    "torchvision": _torchvision,
    "av": _av,
    "vizdoom": _vizdoom,
}

if __name__ == "__main__":
    main(sys.argv[1:])
