"""bczoo: a PyTorch Lightning model zoo for behaviour cloning of video games.

Pixels and an optional instruction in, keyboard, mouse or gamepad actions out, twenty times a second. The data's way
through the modules::

    games (bczoo.games)                          recordings on disk (bczoo.data)
      Game = gymnasium.Env + bindings + expert     <id>/annotation.proto + <id>/192x192.mp4
        | record                          .------------> index (everything but the pixels, flat arrays)
        '------> RecordingWriter ---------'                | windows of T steps, global shuffle
                                                           v
                                 RecordingDataModule: Batch(frames, actions, text, user, system, valid)
                                                           | augmentations on the batch's device
                                                           v
      .----------------------------- BCPolicy (bczoo.model) ------------------------------.
      | frames --ImageEncoder--> image tokens --.                                         |
      | text ----------------------------------- StepTokens --PolicyTransformer--> latent |
      | actions --ActionEmbedding--------------'  (mask: bczoo.model.masks)          |    |
      |               '-------------------------------------> ActionDecoder <--------'    |
      '------------------------------------------------------------|----------------------'
                                                                   v
           training: bc_loss, ActionMetrics <-- logits per action group --> play: Agent (sampling, Memory)
                                                                             | Decision(values, ids, probabilities)
                                                                             v
                                                     games again: play, score_table, draw_decision

Importing this module is light; the names below load their modules on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "ActionSpace": "bczoo.actions",
    "Decision": "bczoo.actions",
    "InputSpec": "bczoo.spec",
    "Batch": "bczoo.spec",
    "BCPolicy": "bczoo.model.policy",
    "PolicyTransformer": "bczoo.model.transformer",
    "Encoder": "bczoo.model.encoder",
    "ImageEncoder": "bczoo.model.encoder",
    "Decoder": "bczoo.model.decoder",
    "ActionDecoder": "bczoo.model.decoder",
    "BackboneHeads": "bczoo.model.decoder",
    "IndependentHeads": "bczoo.model.decoder",
    "TextEncoder": "bczoo.model.text",
    "GemmaTextEncoder": "bczoo.model.text",
    "Agent": "bczoo.agent",
    "PolicyPlayer": "bczoo.agent",
    "FineTune": "bczoo.finetune.policy",
    "LoRA": "bczoo.finetune.lora",
    "RecordingDataModule": "bczoo.data.module",
    "PublishedAugmentations": "bczoo.data.augment",
    "PlayedRecordings": "bczoo.games.record",
    "ResumableCheckpoint": "bczoo.callbacks.checkpoint",
    "PlayGame": "bczoo.callbacks.play",
    "CausalityScore": "bczoo.callbacks.causality",
    "AttentionMaskCheck": "bczoo.callbacks.attention_mask",
    "ActionMetrics": "bczoo.metrics",
    "CausalityMetrics": "bczoo.causality.metrics",
    "RunRecord": "bczoo.callbacks.record",
    "WritePredictions": "bczoo.callbacks.predictions",
    "WarmupCosine": "bczoo.schedules",
    "bc_loss": "bczoo.loss",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from bczoo.actions import ActionSpace as ActionSpace
    from bczoo.actions import Decision as Decision
    from bczoo.agent import Agent as Agent
    from bczoo.agent import PolicyPlayer as PolicyPlayer
    from bczoo.callbacks.attention_mask import AttentionMaskCheck as AttentionMaskCheck
    from bczoo.callbacks.causality import CausalityScore as CausalityScore
    from bczoo.callbacks.checkpoint import ResumableCheckpoint as ResumableCheckpoint
    from bczoo.callbacks.play import PlayGame as PlayGame
    from bczoo.callbacks.predictions import WritePredictions as WritePredictions
    from bczoo.callbacks.record import RunRecord as RunRecord
    from bczoo.causality.metrics import CausalityMetrics as CausalityMetrics
    from bczoo.data.augment import PublishedAugmentations as PublishedAugmentations
    from bczoo.data.module import RecordingDataModule as RecordingDataModule
    from bczoo.finetune.lora import LoRA as LoRA
    from bczoo.finetune.policy import FineTune as FineTune
    from bczoo.games.record import PlayedRecordings as PlayedRecordings
    from bczoo.loss import bc_loss as bc_loss
    from bczoo.metrics import ActionMetrics as ActionMetrics
    from bczoo.model.decoder import ActionDecoder as ActionDecoder
    from bczoo.model.decoder import BackboneHeads as BackboneHeads
    from bczoo.model.decoder import Decoder as Decoder
    from bczoo.model.decoder import IndependentHeads as IndependentHeads
    from bczoo.model.encoder import Encoder as Encoder
    from bczoo.model.encoder import ImageEncoder as ImageEncoder
    from bczoo.model.policy import BCPolicy as BCPolicy
    from bczoo.model.text import GemmaTextEncoder as GemmaTextEncoder
    from bczoo.model.text import TextEncoder as TextEncoder
    from bczoo.model.transformer import PolicyTransformer as PolicyTransformer
    from bczoo.schedules import WarmupCosine as WarmupCosine
    from bczoo.spec import Batch as Batch
    from bczoo.spec import InputSpec as InputSpec


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'bczoo' has no attribute {name!r}")
