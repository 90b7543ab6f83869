"""bczoo: a PyTorch Lightning model zoo for behaviour cloning of video games.

Pixels and an optional instruction in, keyboard, mouse or gamepad actions out, twenty times a second. The data's way
through the modules::

    games (bczoo.games)                          recordings on disk (bczoo.data)
      Game = gymnasium.Env + bindings + expert     <id>/annotation.proto + <id>/192x192.mp4
        | bczoo.record                    .------------> index (everything but the pixels, flat arrays)
        '------> RecordingWriter ---------'                | windows of T steps, global shuffle
                                                           v
                                 RecordingDataModule: Batch(frames, actions, text, user, system, valid)
                                                           | augmentations on the batch's device
                                                           v
      .------------ a family (bczoo.models): Model -> Policy -> BCPolicy, CNNPolicy, TokenPolicy, yours -------------.
      |   encode(frames) --> what each frame alone says --> logits_from(encoded, batch) --> logits per action group   |
      |   open_session(num_envs) --> Session: the same for several games, one frame at a time                         |
      '---------------------------------------------------------------------------------------------------------------'
           |                                                            |
           v training (bczoo.train)                                     v play (bczoo.play)
       bc_loss, ActionMetrics, callbacks                            Agent: sampling, Decision(values, probabilities)
       checkpoints, run record, fine-tuning                             | games side by side, or a socket (bczoo.serve)
           |                                                            v
           '--> exported folders, cards, the Hub (bczoo.hub)        returns, latency, corrections (bczoo.record)

What the parts rest on is in bczoo.core (action spaces, specifications, files, errors), what families share in bczoo.nn,
whether a policy acts on what it sees in bczoo.causality, how its loss falls with size, data and compute in
bczoo.scaling, world models at work in bczoo.worlds, and whole experiments in bczoo.studies.

Importing this module is light; the names below load their modules on first use.
"""

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__version__ = "0.1.0"

_EXPORTED, __getattr__ = lazy_exports(
    __name__,
    {
        "ActionHeads": "bczoo.nn.actions",
        "VQVAE": "bczoo.models.tokenizer.vqvae",
        "VQGAN": "bczoo.models.tokenizer.vqgan",
        "ViTVQGAN": "bczoo.models.tokenizer.vit",
        "Tokenizer": "bczoo.models.tokenizer.tokenizer",
        "CNNPolicy": "bczoo.models.cnn.policy",
        "ConvNeXtEncoder": "bczoo.models.cnn.encoder",
        "InverseDynamics": "bczoo.models.idm.model",
        "InverseDynamicsMetrics": "bczoo.models.idm.metrics",
        "MotionEncoder": "bczoo.models.idm.encoder",
        "Dream": "bczoo.models.token.dream",
        "TokenPolicy": "bczoo.models.token.policy",
        "WorldModel": "bczoo.models.token.world",
        "LogMetrics": "bczoo.train.callbacks.metrics",
        "Model": "bczoo.models.model",
        "Part": "bczoo.core.parts",
        "Policy": "bczoo.models.policy",
        "Session": "bczoo.models.session",
        "WarmupConstant": "bczoo.train.schedules",
        "CompileBlocks": "bczoo.train.callbacks.compile",
        "Sharded": "bczoo.train.sharded",
        "Throughput": "bczoo.train.callbacks.throughput",
        "FiniteCheck": "bczoo.train.callbacks.finite",
        "ActionSpace": "bczoo.core.actions",
        "Decision": "bczoo.core.actions",
        "InputSpec": "bczoo.core.spec",
        "Batch": "bczoo.core.spec",
        "BCPolicy": "bczoo.models.bc.policy",
        "PolicyTransformer": "bczoo.models.bc.transformer",
        "Encoder": "bczoo.nn.encoders",
        "ImageEncoder": "bczoo.nn.encoders",
        "Decoder": "bczoo.models.bc.decoder",
        "ActionDecoder": "bczoo.models.bc.decoder",
        "BackboneHeads": "bczoo.models.bc.decoder",
        "IndependentHeads": "bczoo.models.bc.decoder",
        "TextEncoder": "bczoo.nn.text",
        "GemmaTextEncoder": "bczoo.nn.text",
        "Agent": "bczoo.play.agent",
        "PolicyPlayer": "bczoo.play.agent",
        "FineTune": "bczoo.train.finetune.policy",
        "LoRA": "bczoo.train.finetune.lora",
        "RecordingDataModule": "bczoo.data.module",
        "ReferenceAugmentations": "bczoo.data.augment",
        "PublishedAugmentations": "bczoo.data.augment",  # its former name
        "PlayedRecordings": "bczoo.record.command",
        "ResumableCheckpoint": "bczoo.train.callbacks.checkpoint",
        "PlayGame": "bczoo.train.callbacks.play",
        "Reconstructions": "bczoo.train.callbacks.reconstructions",
        "CausalityScore": "bczoo.train.callbacks.causality",
        "AttentionMaskCheck": "bczoo.train.callbacks.attention_mask",
        "ActionMetrics": "bczoo.train.metrics",
        "CausalityMetrics": "bczoo.causality.metrics",
        "RunRecord": "bczoo.train.callbacks.run_record",
        "ScalingLog": "bczoo.train.callbacks.scaling",
        "WritePredictions": "bczoo.train.callbacks.predictions",
        "WarmupCosine": "bczoo.train.schedules",
        "bc_loss": "bczoo.train.loss",
        "from_pretrained": "bczoo.models.policy",
        "list_models": "bczoo.hub.models",
        "build_part": "bczoo.core.parts",
    },
)

__all__ = ["__version__", *_EXPORTED]

if TYPE_CHECKING:
    from bczoo.causality.metrics import CausalityMetrics as CausalityMetrics
    from bczoo.core.actions import ActionSpace as ActionSpace
    from bczoo.core.actions import Decision as Decision
    from bczoo.core.parts import Part as Part
    from bczoo.core.parts import build_part as build_part
    from bczoo.core.spec import Batch as Batch
    from bczoo.core.spec import InputSpec as InputSpec
    from bczoo.data.augment import PublishedAugmentations as PublishedAugmentations
    from bczoo.data.augment import ReferenceAugmentations as ReferenceAugmentations
    from bczoo.data.module import RecordingDataModule as RecordingDataModule
    from bczoo.hub.models import list_models as list_models
    from bczoo.models.bc.decoder import ActionDecoder as ActionDecoder
    from bczoo.models.bc.decoder import BackboneHeads as BackboneHeads
    from bczoo.models.bc.decoder import Decoder as Decoder
    from bczoo.models.bc.decoder import IndependentHeads as IndependentHeads
    from bczoo.models.bc.policy import BCPolicy as BCPolicy
    from bczoo.models.bc.transformer import PolicyTransformer as PolicyTransformer
    from bczoo.models.cnn.encoder import ConvNeXtEncoder as ConvNeXtEncoder
    from bczoo.models.cnn.policy import CNNPolicy as CNNPolicy
    from bczoo.models.idm.encoder import MotionEncoder as MotionEncoder
    from bczoo.models.idm.metrics import InverseDynamicsMetrics as InverseDynamicsMetrics
    from bczoo.models.idm.model import InverseDynamics as InverseDynamics
    from bczoo.models.model import Model as Model
    from bczoo.models.policy import Policy as Policy
    from bczoo.models.policy import from_pretrained as from_pretrained
    from bczoo.models.session import Session as Session
    from bczoo.models.token.dream import Dream as Dream
    from bczoo.models.token.policy import TokenPolicy as TokenPolicy
    from bczoo.models.token.world import WorldModel as WorldModel
    from bczoo.models.tokenizer.tokenizer import Tokenizer as Tokenizer
    from bczoo.models.tokenizer.vit import ViTVQGAN as ViTVQGAN
    from bczoo.models.tokenizer.vqgan import VQGAN as VQGAN
    from bczoo.models.tokenizer.vqvae import VQVAE as VQVAE
    from bczoo.nn.actions import ActionHeads as ActionHeads
    from bczoo.nn.encoders import Encoder as Encoder
    from bczoo.nn.encoders import ImageEncoder as ImageEncoder
    from bczoo.nn.text import GemmaTextEncoder as GemmaTextEncoder
    from bczoo.nn.text import TextEncoder as TextEncoder
    from bczoo.play.agent import Agent as Agent
    from bczoo.play.agent import PolicyPlayer as PolicyPlayer
    from bczoo.record.command import PlayedRecordings as PlayedRecordings
    from bczoo.train.callbacks.attention_mask import AttentionMaskCheck as AttentionMaskCheck
    from bczoo.train.callbacks.causality import CausalityScore as CausalityScore
    from bczoo.train.callbacks.checkpoint import ResumableCheckpoint as ResumableCheckpoint
    from bczoo.train.callbacks.compile import CompileBlocks as CompileBlocks
    from bczoo.train.callbacks.finite import FiniteCheck as FiniteCheck
    from bczoo.train.callbacks.metrics import LogMetrics as LogMetrics
    from bczoo.train.callbacks.play import PlayGame as PlayGame
    from bczoo.train.callbacks.predictions import WritePredictions as WritePredictions
    from bczoo.train.callbacks.reconstructions import Reconstructions as Reconstructions
    from bczoo.train.callbacks.run_record import RunRecord as RunRecord
    from bczoo.train.callbacks.scaling import ScalingLog as ScalingLog
    from bczoo.train.callbacks.throughput import Throughput as Throughput
    from bczoo.train.finetune.lora import LoRA as LoRA
    from bczoo.train.finetune.policy import FineTune as FineTune
    from bczoo.train.loss import bc_loss as bc_loss
    from bczoo.train.metrics import ActionMetrics as ActionMetrics
    from bczoo.train.schedules import WarmupConstant as WarmupConstant
    from bczoo.train.schedules import WarmupCosine as WarmupCosine
    from bczoo.train.sharded import Sharded as Sharded
