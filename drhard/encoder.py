"""What an encoder of queries and documents is, and what is done with any: batches in chunks, checks, digests."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from drhard.devices import to_device
from drhard.errors import InputError
from drhard.pretrained import architecture_of, find_longest_sequence
from drhard.sentence_modules import SentenceModules
from drhard.tokens import PASSAGES, TokenMemmap

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()  # transformers' bars for reading and writing weights drown ours

CONFIG_NOTES = ("_name_or_path", "transformers_version", "dtype", "architectures")  # do not affect a training
PREPROCESS_FOR_MODEL = "run preprocess.py with the tokenizer of this model (--model_name_or_path)"


class Encoder(nn.Module):
    """A model that turns token ids into embeddings. The score of a query and a document is their inner product.

    :mod:`drhard.model_folder` loads and saves encoders.

    Attributes:
        config: transformers' config of the encoder.
        backbone: transformers' model without a head.
        output_embedding_size: dim, the dimensions of an embedding.
        normalized: embeddings have the length 1.
        tokenizer_digest: the digest of the tokenizer beside the weights; None if there is none.
        prompts: "query" and "passage" -> the text that stands in front of each. A side may be unknown.
        compiled: :meth:`speed_up` was called.
    """

    config: PreTrainedConfig
    backbone: PreTrainedModel
    output_embedding_size: int
    normalized = False
    compiled = False
    tokenizer_digest: str | None = None
    prompts: Mapping[str, str] = MappingProxyType({})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed a batch.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for a token and 0 for padding; None if nothing is padded.

        Returns:
            (B, dim) embeddings.
        """
        raise NotImplementedError

    def spread(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return the mask of a batch in the form that the backbone reads without waiting for the GPU.

        transformers asks the GPU whether a mask (B, L) has padding, in every batch. It takes a mask (B, 1, L, L) as it
        is. ModernBERT needs a second one for its local attention, and makes both itself.
        """
        attention = self.config._attn_implementation
        reads_it = attention in ("sdpa", "eager") and architecture_of(self.config).full_attention
        if attention_mask is None or not reads_it:
            return attention_mask
        length = attention_mask.shape[1]
        spread = attention_mask[:, None, None, :].bool().expand(-1, 1, length, length)
        if attention == "sdpa":
            return spread
        added = torch.zeros_like(spread, dtype=self.backbone.dtype)  # to the scores, before the softmax
        return added.masked_fill(~spread, torch.finfo(added.dtype).min)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def longest_sequence(self) -> int:
        """The most tokens that the model takes."""
        return find_longest_sequence(self.config)

    @property
    def model_args(self) -> dict[str, object]:
        """The arguments with which transformers builds the backbone without a pooler."""
        return {"add_pooling_layer": False} if architecture_of(self.config).pooler else {}

    def speed_up(self) -> None:
        """Compile the model by torch.compile at its first batch, for all shapes. Results differ by rounding."""
        self.compile(dynamic=True)
        self.compiled = True

    def undecayed(self) -> set[str]:
        """Return the names of the parameters that get no weight decay: biases, and the weights of norms."""
        norms = {name for name, module in self.named_modules() if is_norm(module)}
        return {
            name for name, _ in self.named_parameters() if name.endswith("bias") or name.rpartition(".")[0] in norms
        }

    def fingerprint(self) -> str:
        """Return a SHA-256 that tells this encoder from all that give other embeddings."""
        raise NotImplementedError

    def describe(self) -> SentenceModules:
        """Return what stands behind the backbone, as modules of sentence-transformers."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the config and the weights into ``folder``, as transformers and sentence-transformers read them."""
        raise NotImplementedError


def model_inputs(ids: np.ndarray, mask: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what :meth:`TokenMemmap.batch` returned as arguments of :meth:`Encoder.forward` on ``device``.

    There is no mask if nothing is padded. Attention is faster without.
    """
    return to_device(ids, device), None if mask.all() else to_device(mask, device)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in float32 if it is in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class HalfPrecision(nn.Module):
    """A copy of an encoder whose backbone computes in ``dtype``. Its LayerNorms and its head compute in float32.

    The weights are cast once; autocast would cast them again in every batch. Embeddings are float32.
    """

    def __init__(self, model: Encoder, dtype: torch.dtype):
        super().__init__()
        self.model = copy.deepcopy(model)  # without what was compiled
        norms = [module for module in self.model.backbone.modules() if is_norm(module)]
        in_float32 = {id(parameter) for norm in norms for parameter in norm.parameters()}
        for parameter in self.model.backbone.parameters():
            if id(parameter) not in in_float32:
                parameter.data = parameter.data.to(dtype)
        for norm in norms:
            norm.register_forward_pre_hook(lambda _, inputs: tuple(map(at_least_float32, inputs)))
            norm.register_forward_hook(lambda _, inputs, output: output.to(dtype))
        if model.compiled:
            self.model.speed_up()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed a batch; see :meth:`Encoder.forward`."""
        embeddings: torch.Tensor = self.model(input_ids, attention_mask)
        return embeddings


def is_norm(module: nn.Module) -> bool:
    """Return whether ``module`` is a LayerNorm or a similar one of transformers."""
    return type(module).__name__.endswith("Norm")


def embed_groups(
    model: nn.Module, groups: Sequence[Mapping[str, torch.Tensor]], places: torch.Tensor, recompute: bool = False
) -> torch.Tensor:
    """Embed a training batch, group by group.

    The gradient equals that of the whole batch at once, except that dropout draws other numbers.

    Args:
        model: a :class:`Encoder`, or a module that wraps one.
        groups: the arguments of :meth:`Encoder.forward`, for some of the sequences each.
        places: (B,) int64, where each sequence of the batch stands in the groups one after another.
        recompute: drop the activations of each group. The backward pass computes them again, with the same dropout
            (gradient caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
            2021). So the memory is that of one group.

    Returns:
        (B, dim) embeddings, in the order of the batch.
    """
    embeddings = []
    for group in groups:
        inputs = group["input_ids"], group["attention_mask"]
        embeddings.append(checkpoint(model, *inputs, use_reentrant=False) if recompute else model(*inputs))
    return torch.cat(embeddings).index_select(0, places)


def check_finite(model: nn.Module, where: str, way_out: str) -> None:
    """Raise InputError if a weight of ``model`` is not finite.

    Args:
        where: the start of the message: the checkpoint, or the step of a training.
        way_out: the end of the message: what is wrong, or what the user can do.
    """
    for name, parameter in model.named_parameters():
        # One infinite weight makes the sum infinite or NaN. A sum takes a tenth of the time of looking at each weight.
        if not parameter.detach().sum().isfinite() and not parameter.isfinite().all():
            raise InputError(f"{where}: the weights of {name} are not finite; {way_out}")


def check_tokens(model: Encoder, tokens: TokenMemmap) -> None:
    """Check that ``model`` can read ``tokens``. From then on, ``tokens`` checks the ids of each batch as well.

    Raises:
        InputError: a sequence is longer than the model takes, an id is beyond its vocabulary, the ids come from
            another vocabulary, or another prompt stands in front of the texts.
    """
    longest = model.longest_sequence
    if tokens.lengths.max() > longest:
        raise InputError(
            f"{tokens.path}: has sequences of {tokens.lengths.max()} tokens, the model takes at most {longest}; "
            "lower the maximum length"
        )
    known = model.config.vocab_size
    if tokens.max_token_id is not None and tokens.max_token_id >= known:
        raise InputError(
            f"{tokens.path}: has token ids up to {tokens.max_token_id}, the model knows 0 to {known - 1}; "
            f"{PREPROCESS_FOR_MODEL}"
        )
    if None not in (tokens.tokenizer, model.tokenizer_digest) and tokens.tokenizer != model.tokenizer_digest:
        raise InputError(f"{tokens.path}: was made with a vocabulary other than the model's; {PREPROCESS_FOR_MODEL}")
    side = _side(tokens)
    if tokens.prompt is not None and tokens.prompt != model.prompts.get(side, tokens.prompt):
        raise InputError(
            f"{tokens.path}: was made with the {side} prompt {tokens.prompt!r}, the model's is "
            f"{model.prompts[side]!r}; {PREPROCESS_FOR_MODEL}"
        )
    tokens.vocabulary = known


def adopt_prompts(model: Encoder, *sources: TokenMemmap) -> None:
    """Let ``model`` know the prompts of the texts that it learns from, so that its checkpoints name them.

    :func:`check_tokens` refuses texts with a prompt other than the one that the model names.
    """
    told = {_side(tokens): tokens.prompt for tokens in sources if tokens.prompt is not None}
    model.prompts = told | dict(model.prompts)


def _side(tokens: TokenMemmap) -> str:
    return "passage" if tokens.name == PASSAGES else "query"


def digest_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and bytes of all parameters: the same for .bin and safetensors files."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def digest_config(config: PreTrainedConfig) -> str:
    """Return the SHA-256 of the settings that decide what a model computes, dropout included."""
    values = {name: value for name, value in config.to_dict().items() if name not in CONFIG_NOTES}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
