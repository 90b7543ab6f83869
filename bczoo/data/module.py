"""The data module: recordings in folders, archives and stores become batches for a trainer.

Place in the pipeline: `bczoo fit --config ...` builds it from the ``data`` section of a configuration. It
asks the model which input it needs (:class:`bczoo.core.spec.InputSpec`, ``supervision`` and ``fields`` of
:class:`bczoo.models.model.Model`), brings the index up to date, splits recordings, and hands out loaders whose order
depends on the seed and the epoch alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torchvision.transforms.v2 import Transform

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.spec import ASKED, FIELDS, SUPERVISION, Batch, InputSpec
from bczoo.data.ahead import require_room
from bczoo.data.augment import ClipAugment
from bczoo.data.cache import Cache
from bczoo.data.dataset import WindowDataset
from bczoo.data.features import Features
from bczoo.data.index import Index, as_roots, open_index
from bczoo.data.loader import WindowLoader
from bczoo.data.proportions import mismatch
from bczoo.data.pseudo import PseudoLabels, draws, hours, of_guesses
from bczoo.data.recording import LEARNED, PSEUDO, SYSTEM
from bczoo.data.source import RecordingSource
from bczoo.data.summary import report, summarise
from bczoo.data.windows import OPEN_RECORDINGS, Plan, list_windows, split, subset


class RecordingDataModule(L.LightningDataModule):
    """Windows of recordings for training, validation, test and prediction.

    Args:
        root: folder of recordings or of archives of them (*.tar, *.tar.gz), an archive, a URL of either
            (hf://datasets/org/name, s3://bucket/path, ...), or several of these.
        batch_size: windows per batch and process.
        window: steps of a window; asked from the model if left out.
        frame_size: height and width of the frames in pixels, one number for a square; asked from the model if left out.
        action_space: name of an action space, or its dict; asked from the model if left out.
        val_root: of validation recordings, as root; if left out, a part of root is kept for validation.
        test_root: of test recordings, as root; if left out, tests run on the validation recordings.
        val_fraction: share of root's recordings kept for validation, chosen by name, where val_root is left out.
        fraction: share of the training frames to use; smaller shares are parts of larger ones.
        seed: of the order of windows and of augmentations.
        num_workers: processes that read windows; also used to index new recordings.
        strict: raise an error at broken recordings and unknown keys, which are otherwise skipped with a
            warning.
        augment: transforms of training clips, such as bczoo.ReferenceAugmentations; none if left out.
        source: produces recordings in root before training, if they are not there yet.
        val_source: the same for val_root.
        pin_memory: page-locked batches; if left out, where the trainer uses a GPU.
        cache_gb: gigabytes that unpacked archives and recordings of stores may take on this computer;
            BCZOO_CACHE_GB or 50 if left out.
        cache_dir: folder of these; BCZOO_CACHE_DIR or bczoo/recordings in the user's cache if left out.
        open_recordings: recordings of archives or stores that are shuffled together, and lie in the cache at once.
        pseudo: learn also from actions that a model has read off video (bczoo data label); validation and test never
            count them.
        pseudo_min_confidence: the least confidence of such an action.
        pseudo_weight: of such a step in the loss; a person's is 1.
        pseudo_share: of the windows of a batch, that are of recordings with such actions, where there are others too;
            null draws all windows alike.
        pseudo_idle_share: of the guesses of a recording that are learned from, at most so many are in runs of more
            than two seconds in which nothing was done; null keeps all of them.
        feature_cache: folder where a frozen encoder's features of every frame are kept; missing ones are computed
            before the first step, and windows are read from there instead of from videos. None reads videos.
    """

    def __init__(
        self,
        root: str | list[str],
        batch_size: int = 8,
        window: int | None = None,
        frame_size: int | None = None,
        action_space: str | dict[str, Any] | None = None,
        val_root: str | list[str] | None = None,
        test_root: str | list[str] | None = None,
        val_fraction: float = 0.1,
        fraction: float = 1.0,
        seed: int = 0,
        num_workers: int = 0,
        strict: bool = False,
        augment: list[Transform] | None = None,
        source: RecordingSource | None = None,
        val_source: RecordingSource | None = None,
        pin_memory: bool | None = None,
        cache_gb: float | None = None,
        cache_dir: str | None = None,
        open_recordings: int = OPEN_RECORDINGS,
        pseudo: bool = False,
        pseudo_min_confidence: float = 0.0,
        pseudo_weight: float = 1.0,
        pseudo_share: float | None = 0.5,
        pseudo_idle_share: float | None = 0.1,
        feature_cache: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction is a share of the recordings from 0 to below 1, got {val_fraction}")
        if not 0 < fraction <= 1:
            raise UserError(f"fraction is a share of the training frames above 0 and up to 1, got {fraction}")
        if augment and feature_cache is not None:
            raise UserError(
                "data.feature_cache keeps one result of the encoder for every frame, but data.augment changes the "
                "frames in every epoch; leave one of them out (--data.augment null)"
            )
        arguments.whole("batch_size", batch_size, 1)
        arguments.whole("num_workers", num_workers, 0)
        arguments.whole("open_recordings", open_recordings, 1)
        for name, number in (("window", window), ("frame_size", frame_size)):
            if number is not None:
                arguments.whole(name, number, 1)
        self.root = root
        self.batch_size = batch_size
        self.window = window
        self.frame_size = frame_size
        self.action_space = action_space
        self.val_root = val_root
        self.test_root = test_root
        self.val_fraction = val_fraction
        self.fraction = fraction
        self.seed = seed
        self.num_workers = num_workers
        self.strict = strict
        self.augment = ClipAugment(augment) if augment else None
        self.source = source
        self.val_source = val_source
        self.pin_memory = pin_memory
        self.cache = Cache(cache_dir, cache_gb)
        self.open_recordings = open_recordings
        guesses = PseudoLabels(pseudo_min_confidence, pseudo_weight, pseudo_share, pseudo_idle_share)
        self.pseudo = guesses if pseudo else None
        self.feature_cache = feature_cache
        self._parts: dict[str, tuple[Index, np.ndarray]] = {}
        self._loaders: dict[str, WindowLoader] = {}  # the last one of each part
        self._unreadable = 0  # steps, of loaders that are closed
        self._clips: list[tuple[int, int]] = []

    @property
    def input_spec(self) -> InputSpec:
        """What recordings are brought to: what the policy asks for, or this module's arguments."""
        wish: InputSpec | None = getattr(self._model, "input_spec", None)
        space = None if self.action_space is None else ActionSpace.of(self.action_space)
        if wish is None:
            spec = InputSpec(space or ActionSpace.keyboard_mouse())
        else:
            for name, own, asked in (
                ("action_space", space, wish.action_space),
                ("frame_size", self.frame_size, wish.frame_size),
            ):
                if own is not None and own != asked:
                    raise UserError(f"data.{name} is {own}, but the model takes {asked}; leave data.{name} out")
            spec = wish
        return dataclasses.replace(
            spec, frame_size=self.frame_size or spec.frame_size, window=self.window or spec.window
        )

    @property
    def supervision(self) -> str:
        """Whose actions are learned from, as the model says: user, any or none."""
        supervision: str = getattr(self._model, "supervision", "user")
        arguments.one_of("supervision", supervision, SUPERVISION)
        return supervision

    @property
    def fields(self) -> tuple[str, ...]:
        """What is read beyond the index, as the model asks for it."""
        fields = tuple(getattr(self._model, "fields", FIELDS))
        if unknown := sorted(set(fields) - set(ASKED)):
            raise UserError(
                f"{type(self._model).__name__} asks for batches with {', '.join(unknown)}; recordings give "
                f"{', '.join(ASKED)}"
            )
        return fields

    def prepare_data(self) -> None:
        """Have missing recordings produced and bring the indexes up to date (one process of each node)."""
        for source, root in ((self.source, self.root), (self.val_source, self.val_root)):
            if source is None:
                continue
            roots = as_roots(root or [])
            if len(roots) != 1:
                raise UserError(f"a source fills one root, but data.root or data.val_root lists {len(roots)}")
            if not isinstance(roots[0], Path):
                raise UserError(f"a source fills a folder, not {roots[0]}; --data.source null trains on what is there")
            source.prepare(roots[0])
        wanted = [root for root in (self.root, self.val_root, self.test_root) if root is not None]
        for path in dict.fromkeys(path for root in wanted for path in as_roots(root)):
            self._open(path, scan=True)

    def setup(self, stage: str | None = None) -> None:
        """Open the indexes and split the recordings."""
        # With a trainer prepare_data has just run. To look again could give processes different recordings.
        scan = self.trainer is None
        index = self._open(self.root, scan)
        training, validation = split(index, 0.0 if self.val_root is not None else self.val_fraction)
        self._parts = {"train": (index, subset(index, training, self.fraction)), "val": (index, validation)}
        if self.val_root is not None:
            held_out = self._open(self.val_root, scan)
            self._parts["val"] = (held_out, held_out.usable)
        self._parts["test"] = self._parts["val"]
        if self.test_root is not None:
            held_out = self._open(self.test_root, scan)
            self._parts["test"] = (held_out, held_out.usable)
        # Errors are raised in all processes, or the others would wait for this one for ever.
        warn = self.trainer is None or self.trainer.is_global_zero
        for opened in self.indexes:
            opened.report(self.strict, warn)
            if warn and (wrong := mismatch(opened, self.input_spec.frame_size, self.input_spec.resize)):
                warnings.warn(wrong, stacklevel=2)
        if stage == "fit" and self.trainer is not None and warn:
            print(self._summary())

    def train_dataloader(self) -> WindowLoader:
        """Shuffled windows of the training recordings; a resumed run goes on within the epoch."""
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))  # trains on the same batches again and again
        loader = self._loader("train", shuffle=not overfit)
        plan = loader.plan
        kinds = {"user": [*LEARNED], "any": [*LEARNED, SYSTEM], "none": []}[self.supervision]
        if self.pseudo is not None:
            kinds = [*kinds, PSEUDO]
        if kinds and len(plan.recordings) and not _holds(plan, kinds):
            whose = "an action of a user" if SYSTEM not in kinds else "a known action"
            guessed = self.pseudo is None and _holds(plan, [PSEUDO])
            raise UserError(
                f"{self.root}: none of the {len(plan.recordings)} training recordings holds {whose}, and "
                "only those are learned from; "
                + (
                    "they hold actions that were read off video, which --data.pseudo true learns from"
                    if guessed
                    else "record demonstrations or corrections (bczoo record)"
                )
            )
        if not len(loader):
            each = f" on each of {plan.world_size} processes" if plan.world_size > 1 else ""
            raise UserError(
                f"{self.root}: {len(plan.recordings)} training recordings give {plan.n_windows()} windows of "
                f"{plan.window} steps, too few for one batch of {self.batch_size} windows{each}; lower "
                "data.batch_size or record more"
            )
        return loader

    def val_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """All windows of the validation recordings; the first ones come from everywhere."""
        return self._evaluation_loader("val", spread=True)

    def test_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """All windows of the test recordings; the first ones come from everywhere."""
        return self._evaluation_loader("test", spread=True)

    def predict_dataloader(self) -> WindowLoader | list[WindowLoader]:
        """All windows of the test recordings, in order."""
        return self._evaluation_loader("test")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Remember which clips these are while that can be read without waiting for the device."""
        if self.augment is not None and self._training:
            self._clips = list(zip(batch["recording"].tolist(), batch["start"].tolist(), strict=True))
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training clips on the device; the random numbers depend on the seed, the epoch and the clip."""
        if self.augment is not None and self._training and "frames" in batch:
            assert self.trainer is not None
            key = (self.seed, self.trainer.current_epoch)
            batch["frames"] = self.augment(batch["frames"], [(*key, *clip) for clip in self._clips])
        return batch

    @property
    def indexes(self) -> list[Index]:
        """The indexes of all recordings, each root's once."""
        return list({id(index): index for index, _ in self._parts.values()}.values())

    def describe(self) -> dict[str, Any]:
        """What is trained and validated on, as plain JSON: folders, recordings, hours."""
        out: dict[str, Any] = {"root": [str(p) for p in as_roots(self.root)], "fraction": self.fraction}
        for part, (index, recordings) in self._parts.items():
            if part != "test":
                hours = float(index.n_frames[recordings].sum()) / index.target.fps / 3600
                out[part] = {"recordings": len(recordings), "hours": round(hours, 4)}
        if self.source is not None:
            out["source"] = self.source.describe()
        if self.pseudo is not None:
            out["pseudo"] = dataclasses.asdict(self.pseudo)
        return out | {"batch_size": self.batch_size, "augmented": self.augment is not None}

    def on_exception(self, exception: BaseException) -> None:
        """Stop worker processes; Lightning does not call ``teardown`` then."""
        self.teardown()

    def teardown(self, stage: str | None = None) -> None:
        """Stop worker processes and report frames that could not be read."""
        for part in list(self._loaders):
            self._close(part)
        unreadable, self._unreadable = self._unreadable, 0
        if unreadable:
            warnings.warn(
                f"{unreadable} steps had no readable frame and were not learned from; "
                f"`bczoo data check {' '.join(str(p) for p in as_roots(self.root))}` lists broken recordings",
                stacklevel=2,
            )

    @property
    def _model(self) -> L.LightningModule | None:
        return self.trainer.lightning_module if self.trainer is not None else None

    @property
    def _training(self) -> bool:
        return self.trainer is not None and bool(self.trainer.training)

    def _open(self, root: str | list[str] | Path, scan: bool) -> Index:
        spec = self.input_spec
        return open_index(root, spec.action_space, spec.fps, spec.text_dim, scan, self.num_workers, cache=self.cache)

    def _summary(self) -> str:
        """What is trained on, in a few lines."""
        spec = self.input_spec
        index, recordings = self._parts["train"]
        drop_system = self.supervision == "user"
        windows, _ = list_windows(index, recordings, spec.window, None, drop_system, self.pseudo)
        training = summarise(index, recordings, len(windows), spec.frame_size if "frames" in self.fields else None)
        held_out, validation = self._parts["val"]
        wanted = self.val_root is not None or self.val_fraction > 0
        told = report(training, summarise(held_out, validation) if wanted else None)
        labels = [hours(index, recordings, self.pseudo)]
        if self.pseudo is not None:
            labels.append(draws(of_guesses(index, windows), self.pseudo.share))
        return "\n".join([told, *filter(None, labels)])

    def _evaluation_loader(self, part: str, spread: bool = False) -> WindowLoader | list[WindowLoader]:
        loader = self._loader(part, shuffle=False, spread=spread)
        return loader if len(loader) else []  # an empty list is Lightning's "none"

    def _features(self, part: str) -> Features | None:
        """What a part's windows are read from, features or ids; None where they are read from videos."""
        if "tokens" in self.fields:
            from bczoo.data.tokens import tokens_of

            return tokens_of(*self._parts[part], self._model, self.input_spec.fps)
        if self.feature_cache is None or "frames" not in self.fields:
            return None
        from bczoo.data.features_build import keep_features

        trainer = self.trainer
        # in one pass, so that a full disk is told before the first step
        wanted = dict.fromkeys([part, "train", "val"] if trainer is not None and trainer.state.fn == "fit" else [part])
        parts = [self._parts[name] for name in wanted]
        return keep_features(self.feature_cache, trainer, parts, self.input_spec.resize, self.num_workers)[0]

    def _close(self, part: str) -> None:
        """Stop the worker processes of a part's last loader, if it has one."""
        if (loader := self._loaders.pop(part, None)) is not None:
            loader.close()
            self._unreadable += loader.windows.unreadable_steps

    def _loader(self, part: str, shuffle: bool, spread: bool = False) -> WindowLoader:
        index, recordings = self._parts[part]
        spec = self.input_spec
        trainer = self.trainer
        rank, world_size = _share(trainer)
        plan = Plan(
            index,
            recordings,
            spec.window,
            self.batch_size,
            shuffle,
            self.seed,
            rank=rank,
            world_size=world_size,
            spread=spread,
            drop_system=self.supervision == "user",
            open_recordings=self.open_recordings,
            pseudo=self.pseudo if part == "train" else None,
        )
        pin = self.pin_memory
        if pin is None:
            pin = trainer is not None and torch.device(trainer.strategy.root_device).type == "cuda"
        sizes = (spec.window, spec.frame_size)
        features = self._features(part)
        dataset = WindowDataset(index, *sizes, self.strict, spec.resize, self.fields, plan.pseudo, features)
        if dataset.reads_videos:
            require_room(plan)
        self._close(part)  # trainers may ask for new loaders every few epochs
        self._loaders[part] = WindowLoader(dataset, plan, self.num_workers, pin)
        return self._loaders[part]


def _share(trainer: L.Trainer | None) -> tuple[int, int]:
    """Which share of the windows a process gets, of how many: by the strategy's count of those that see other data."""
    if trainer is None:
        return 0, 1
    dealt = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
    return (trainer.global_rank, trainer.world_size) if dealt is None else (dealt["rank"], dealt["num_replicas"])


def _holds(plan: Plan, kinds: list[int]) -> bool:
    """Whether a recording of a plan holds a step of one of these kinds."""
    return any(np.isin(plan.index.steps(r)[1][1:], kinds).any() for r in plan.recordings)
