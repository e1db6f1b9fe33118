"""The encoder of the paper."""

from pathlib import Path

from drhard.encoder import Encoder, at_least_float32, digest_weights
from drhard.sentence_modules import Dense, SentenceModules, write_modules

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, RobertaConfig, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaPreTrainedModel

HEAD = ("embeddingHead.bias", "embeddingHead.weight", "norm.bias", "norm.weight")


def embedding_size(config: PreTrainedConfig) -> int:
    """Return the dimensions of an embedding."""
    return int(getattr(config, "output_embedding_size", None) or config.hidden_size)


class RobertaDot(RobertaPreTrainedModel, Encoder):
    """RoBERTa, then ``LayerNorm(W h + b)`` on the last hidden state h of ``<s>``; no pooler.

    W maps hidden_size to ``config.output_embedding_size`` (hidden_size if the config has none). The score of
    a query and a document is the inner product of their embeddings. Parameters have the names of the published
    checkpoints: ``roberta.*``, ``embeddingHead.*``, ``norm.*``.
    """

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.output_embedding_size = embedding_size(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.embeddingHead = nn.Linear(config.hidden_size, self.output_embedding_size)
        self.norm = nn.LayerNorm(self.output_embedding_size)
        self.post_init()  # type: ignore[operator]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """See :meth:`drhard.encoder.Encoder.forward`."""
        # The published configs set return_dict to false.
        mask = self.spread(attention_mask)
        hidden = self.roberta(input_ids, mask, return_dict=True).last_hidden_state  # (B, L, hidden)
        embeddings: torch.Tensor = self.norm(self.embeddingHead(at_least_float32(hidden[:, 0])))
        return embeddings

    def undecayed(self) -> set[str]:
        """Return the names of the parameters that get no weight decay, as published.

        The LayerNorm of the head is not among them: star/train.py and adore/train.py chose by these parts of names.
        """
        return {name for name, _ in self.named_parameters() if "bias" in name or "LayerNorm.weight" in name}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights."""
        return digest_weights(self)

    @property
    def backbone(self) -> PreTrainedModel:
        """See :class:`drhard.encoder.Encoder`."""
        return self.roberta

    def describe(self) -> SentenceModules:
        """See :meth:`drhard.encoder.Encoder.describe`."""
        heads = (Dense(self.embeddingHead), self.norm)
        return SentenceModules(
            Path(), "cls", heads, self.longest_sequence, prompts=self.prompts, model_args=self.model_args
        )

    def save(self, folder: Path) -> None:
        """See :meth:`drhard.encoder.Encoder.save`. sentence-transformers reads the head from modules of its own."""
        self.save_pretrained(folder)  # type: ignore[operator]
        write_modules(folder, int(self.config.hidden_size), self.describe())
