"""Any encoder of transformers: pooled, and with the heads that sentence-transformers knows."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from drhard.encoder import Encoder, at_least_float32, digest_config, digest_weights
from drhard.errors import InputError
from drhard.sentence_modules import Dense, SentenceModules, describe_head, write_modules

import torch
from torch import nn
from transformers import PreTrainedModel


class PooledEncoder(Encoder):
    """A transformers encoder, then the first or the mean of its last hidden states, then heads in turn.

    Args:
        backbone: the encoder without a head.
        modules: the pooling and the heads: "cls" for the hidden state of the first token, "mean" for the mean over all
            tokens; modules from (B, n) to (B, m).
    """

    def __init__(self, backbone: PreTrainedModel, modules: SentenceModules):
        super().__init__()
        heads = modules.heads
        self.backbone, self.modules_read, self.heads = backbone, modules, nn.ModuleList(heads)
        self.config, self.pooling, self.prompts = backbone.config, modules.pooling, modules.prompts
        self.normalized = modules.normalized
        sizes = [head.linear.out_features for head in heads if isinstance(head, Dense)]
        self.output_embedding_size = sizes[-1] if sizes else int(self.config.hidden_size)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """See :meth:`drhard.encoder.Encoder.forward`."""
        mask = self.spread(attention_mask)
        hidden = self.backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state  # (B, L, hidden)
        if self.pooling == "cls":
            pooled = at_least_float32(hidden[:, 0])
        elif attention_mask is None:
            pooled = at_least_float32(hidden).mean(1)
        else:
            hidden = at_least_float32(hidden)
            weights = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        for head in self.heads:
            pooled = head(pooled)
        embeddings: torch.Tensor = pooled
        return embeddings

    def fingerprint(self) -> str:
        """Return the SHA-256 of weights, config, pooling and heads: weights alone do not tell cls from mean."""
        parts = [digest_weights(self), digest_config(self.config), self.pooling, *map(describe_head, self.heads)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def describe(self) -> SentenceModules:
        """See :meth:`drhard.encoder.Encoder.describe`."""
        length = min(self.modules_read.max_seq_length or self.longest_sequence, self.longest_sequence)
        return replace(
            self.modules_read,
            heads=tuple(self.heads),
            max_seq_length=length,
            prompts=self.prompts,
            model_args=self.model_args,
        )

    def save(self, folder: Path) -> None:
        """See :meth:`drhard.encoder.Encoder.save`."""
        self.backbone.save_pretrained(folder)
        write_modules(folder, int(self.config.hidden_size), self.describe())

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Save memory in training, as transformers' models do. The Trainer calls it.

        Raises:
            InputError: transformers cannot do this for the backbone.
        """
        if not self.backbone.supports_gradient_checkpointing:
            raise InputError(
                f"--gradient_checkpointing is not supported for {self.config.model_type}; omit it, or save memory "
                "with --chunk_size"
            )
        # Releases before 5.20 know it by its former name.
        enable = getattr(self.backbone, "activation_checkpointing_enable", None)
        (enable or self.backbone.gradient_checkpointing_enable)(**options)

    gradient_checkpointing_enable = activation_checkpointing_enable
