"""The transformers encoders that can be used: what their config.json must say, and how their weights are named."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from drhard.numbers import COUNT, DIM, EPSILON, FRACTION, NATURAL, Range

Fields = dict[str, tuple[type | tuple[type, ...], Range | None]]  # field -> its type and its range

_BASE = Range(1, 1e9, whole=False)  # of rotary positions
_ID = ((int, type(None)), NATURAL)

_SIZES: Fields = {
    "vocab_size": (int, COUNT),
    "hidden_size": (int, COUNT),
    "num_hidden_layers": (int, COUNT),
    "num_attention_heads": (int, COUNT),
    "intermediate_size": (int, COUNT),
    "max_position_embeddings": (int, COUNT),
}
_ACT: Fields = {"hidden_act": (str, None), "layer_norm_eps": (float, EPSILON)}
_BERT: Fields = _SIZES | _ACT | {"type_vocab_size": (int, COUNT)}
_DROPOUT: Fields = {
    "pad_token_id": (int, NATURAL),
    "hidden_dropout_prob": (float, FRACTION),
    "attention_probs_dropout_prob": (float, FRACTION),
    "initializer_range": (float, FRACTION),
}
_ENDS: Fields = {"bos_token_id": _ID, "eos_token_id": _ID}
_ENCODER_ONLY: Mapping[str, object] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
}
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"


@dataclass(frozen=True)
class Architecture:
    """A type of transformers' encoders.

    Attributes:
        prefix: the name of the encoder in models with a head, in front of the names of its weights.
        required, optional: the fields of config.json that decide an embedding. Other fields are ignored.
        otherwise: what further fields must be if they are there.
        told: sizes that the weights show as well: field -> (name of a weight, its dimension).
        layer: finds the number of a layer in the name of a weight.
        positions_after_padding: positions are counted from ``pad_token_id`` + 1, as RoBERTa's are.
        pooler: transformers can build it without its pooler.
        full_attention: every token attends to all others, in every layer.
        names: transformers' usual field -> the field of this type.
    """

    prefix: str
    required: Fields
    told: Mapping[str, tuple[str, int]]
    optional: Fields = field(default_factory=lambda: _DROPOUT | _ENDS)
    otherwise: Mapping[str, object] = field(default_factory=lambda: _ENCODER_ONLY)
    layer: re.Pattern[str] = re.compile(r"encoder\.layer\.(\d+)\.")
    positions_after_padding: bool = False
    pooler: bool = True
    full_attention: bool = True
    names: Mapping[str, str] = field(default_factory=dict)

    def name(self, usual: str) -> str:
        """Return this type's name for one of transformers' usual fields, such as hidden_size."""
        return self.names.get(usual, usual)


_BERT_SIZES = {
    "vocab_size": (_WORDS, 0),
    "hidden_size": (_WORDS, 1),
    "max_position_embeddings": (_POSITIONS, 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}
BERT = Architecture("bert", _BERT, _BERT_SIZES)
ROBERTA = Architecture(
    "roberta",
    _BERT,
    _BERT_SIZES,
    optional=_DROPOUT | _ENDS | {"output_embedding_size": ((int, type(None)), DIM)},
    positions_after_padding=True,
)
XLM_ROBERTA = Architecture("roberta", _BERT, _BERT_SIZES, positions_after_padding=True)
MPNET = Architecture(
    "mpnet",
    _SIZES | _ACT,
    {name: told for name, told in _BERT_SIZES.items() if name != "type_vocab_size"},
    optional=_DROPOUT | _ENDS | {"relative_attention_num_buckets": (int, COUNT)},
    positions_after_padding=True,
)
DISTILBERT = Architecture(
    "distilbert",
    {
        "vocab_size": (int, COUNT),
        "dim": (int, COUNT),
        "n_layers": (int, COUNT),
        "n_heads": (int, COUNT),
        "hidden_dim": (int, COUNT),
        "max_position_embeddings": (int, COUNT),
        "activation": (str, None),
    },
    {
        "vocab_size": (_WORDS, 0),
        "dim": (_WORDS, 1),
        "max_position_embeddings": (_POSITIONS, 0),
        "hidden_dim": ("transformer.layer.0.ffn.lin1.weight", 0),
    },
    optional={
        "pad_token_id": (int, NATURAL),
        "dropout": (float, FRACTION),
        "attention_dropout": (float, FRACTION),
        "initializer_range": (float, FRACTION),
        "sinusoidal_pos_embds": (bool, None),
    },
    otherwise={},
    layer=re.compile(r"transformer\.layer\.(\d+)\."),
    pooler=False,
    names={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_act": "activation",
    },
)
MODERNBERT = Architecture(
    "model",
    _SIZES | {"hidden_activation": (str, None), "norm_eps": (float, EPSILON)},
    {
        "vocab_size": ("embeddings.tok_embeddings.weight", 0),
        "hidden_size": ("embeddings.tok_embeddings.weight", 1),
        "intermediate_size": ("layers.0.mlp.Wo.weight", 1),
    },
    optional={
        "pad_token_id": (int, NATURAL),
        **_ENDS,
        "cls_token_id": _ID,
        "sep_token_id": _ID,
        "attention_dropout": (float, FRACTION),
        "embedding_dropout": (float, FRACTION),
        "mlp_dropout": (float, FRACTION),
        "initializer_range": (float, FRACTION),
        "norm_bias": (bool, None),
        "attention_bias": (bool, None),
        "mlp_bias": (bool, None),
        "local_attention": (int, COUNT),
        "global_attn_every_n_layers": (int, COUNT),
        "global_rope_theta": (float, _BASE),
        "local_rope_theta": ((float, type(None)), _BASE),
        "rope_parameters": ((dict, type(None)), None),
        "layer_types": ((list, type(None)), None),
    },
    otherwise={"rope_scaling": None},
    layer=re.compile(r"layers\.(\d+)\."),
    pooler=False,
    full_attention=False,
    names={"hidden_act": "hidden_activation"},
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "mpnet": MPNET,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
}
