"""Whatever names a policy becomes that policy: a published folder, a repository on the Hub, a run, a checkpoint.

Place in the pipeline: ``BCPolicy.from_pretrained``, ``--model.init_from`` and the commands that take a policy come
here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bczoo.core.configs import without_imagenet
from bczoo.core.errors import UserError
from bczoo.hub.build import build_without_weights, check_config
from bczoo.hub.folder import CONFIG, load_folder, read_folder, read_weights
from bczoo.hub.remote import fetch, is_repository
from bczoo.hub.state import Checkpoint, read_checkpoint
from bczoo.train.callbacks.checkpoint import LAST
from bczoo.train.run_record import PUBLISHED_RECORD, RUN_RECORD, read_record, weights_step

if TYPE_CHECKING:
    from bczoo.models.bc.policy import BCPolicy


@dataclass(frozen=True)
class Source:
    """Where a policy comes from.

    Args:
        path: a published folder, or a checkpoint.
        repository: name on the Hub, if it came from there.
    """

    path: Path
    repository: str | None = None

    @property
    def published(self) -> bool:
        return self.path.is_dir()

    def load(
        self,
        cls: type[BCPolicy] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> BCPolicy:
        """The policy, in evaluation mode."""
        if self.published:
            return load_folder(self.path, cls, device, dtype)
        checkpoint = self._checkpoint(cls)
        policy = build_without_weights(checkpoint.config, self.path, cls)
        policy.load_state_dict({k: v.clone() for k, v in checkpoint.state.items()}, assign=True)
        return policy.to(device=device, dtype=dtype).eval()

    def config_and_weights(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Arguments and float32 weights of the policy, for training to go on from."""
        if self.published:
            published = read_folder(self.path)
            return without_imagenet(published.config), read_weights(published, dtype=torch.float32)
        checkpoint = self._checkpoint()
        return without_imagenet(checkpoint.config), checkpoint.state

    def _checkpoint(self, cls: type[BCPolicy] | None = None) -> Checkpoint:
        """The checkpoint, checked to be of one policy."""
        checkpoint = read_checkpoint(self.path)
        check_config(checkpoint.config, checkpoint.headers, self.path, cls)
        return checkpoint

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the training; empty if nothing is."""
        if self.published:
            return read_record(self.path / PUBLISHED_RECORD)
        record, checkpoint = read_record(self.path.parent.parent / RUN_RECORD), read_checkpoint(self.path)
        # another run may have been started beside a checkpoint, or the same one gone on
        if not record or record.get("run") != checkpoint.run:
            return {}
        return record if checkpoint.step == weights_step(record) else record | {"weights_step": checkpoint.step}


def locate(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Source:
    """Find a policy.

    Args:
        source: a published folder, a checkpoint (``.ckpt``), the folder of a run, or ``org/name`` on the Hub.
        revision: branch, tag or commit on the Hub.
        token: access token of the Hub; the stored one if left out.
        cache_dir: huggingface_hub's download cache, if it is another one.
        local_files_only: do not look at the network.

    Raises:
        UserError: there is no such policy; says what was looked for.
    """
    path = Path(source)
    if path.is_file():
        return Source(path)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return Source(path)
        for checkpoint in (path / LAST, path / "checkpoints" / LAST):
            if checkpoint.is_file():
                return Source(checkpoint)
        raise UserError(f"{path} holds no policy: neither {CONFIG} (a published folder) nor checkpoints/{LAST} (a run)")
    name = str(source)
    if is_repository(name) and not name.startswith(("runs/", "checkpoints/", ".")):
        try:
            return Source(fetch(name, revision, token, None, cache_dir, local_files_only), name)
        except UserError as error:
            raise UserError(f"there is no folder {name} here, and on the Hugging Face Hub: {error}") from error
    beside = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(name, beside, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise UserError(
        f"there is no policy {name!r}{hint} A policy is a published folder, a run such as runs/quickstart, "
        "a .ckpt file, or org/name on the Hugging Face Hub"
    )
