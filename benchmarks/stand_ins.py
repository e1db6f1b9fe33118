"""Random models as large as roberta-base, and random text lengths like those of MS MARCO's passages."""

from drhard.roberta_dot import RobertaDot

import numpy as np
import torch
from transformers import RobertaConfig

MEDIAN, SPREAD = 65, 0.45  # tokens of MS MARCO's passages: log-normal


def passage_lengths(random: np.random.Generator, count: int, longest: int) -> np.ndarray:
    """Draw the lengths of ``count`` texts, (count,) int32 tokens, like MS MARCO's passages, cut at ``longest``."""
    lengths = np.exp(random.normal(np.log(min(MEDIAN, longest)), SPREAD, count))
    return np.clip(lengths, 5, longest).astype(np.int32)


def random_encoder(layers: int, vocabulary: int = 50265) -> RobertaDot:
    """Return a model as wide as roberta-base, with random weights and no dropout. 12 layers make it as deep."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=514,
        num_hidden_layers=layers,
        pad_token_id=1,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return RobertaDot(config)
