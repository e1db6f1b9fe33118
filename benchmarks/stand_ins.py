"""Random models as large as roberta-base, and random text lengths like those of MS MARCO's passages."""

import json
from pathlib import Path

from drhard.roberta_dot import RobertaDot

import numpy as np
import torch
from transformers import RobertaConfig

MEDIAN, SPREAD = 65, 0.45  # tokens of MS MARCO's passages: log-normal


def passage_lengths(random: np.random.Generator, count: int, longest: int) -> np.ndarray:
    """Draw the lengths of ``count`` texts, (count,) int32 tokens, like MS MARCO's passages, cut at ``longest``."""
    lengths = np.exp(random.normal(np.log(min(MEDIAN, longest)), SPREAD, count))
    return np.clip(lengths, 5, longest).astype(np.int32)


def random_encoder(layers: int, vocabulary: int = 50265, width: int = 768) -> RobertaDot:
    """Return a model with random weights and no dropout, as wide as roberta-base. 12 layers make it as deep."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        num_hidden_layers=layers,
        pad_token_id=1,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return RobertaDot(config)


def write_tokens(folder: Path, name: str, lengths: np.ndarray, longest: int, vocabulary: int = 50265) -> None:
    """Write random texts of ``lengths`` (rows,) tokens as preprocess.py writes them."""
    random = np.random.default_rng(0)
    rows = random.integers(3, vocabulary, (len(lengths), longest), dtype=np.int32)
    rows[np.arange(longest) >= lengths[:, None]] = 0
    rows.tofile(folder / f"{name}.memmap")
    np.save(folder / f"{name}_length.npy", lengths)
    meta = {"type": "int32", "total_number": len(lengths), "embedding_size": longest}
    (folder / f"{name}_meta").write_text(json.dumps(meta))


def flops(config: RobertaConfig, lengths: np.ndarray) -> float:
    """Return the FLOPs of the matrix products for sequences of these lengths without padding."""
    hidden, inner = config.hidden_size, config.intermediate_size
    each_token = 2 * (4 * hidden * hidden + 2 * hidden * inner)
    attention = 2 * 2 * hidden * lengths.astype(np.float64) ** 2
    return config.num_hidden_layers * float((each_token * lengths + attention).sum())
