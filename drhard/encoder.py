"""The encoder of queries and documents, and its checkpoints."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import cast

from drhard.errors import InputError
from drhard.files import write_whole_folder
from drhard.hub import CONFIG_FILE, TOKENIZER_FILES, find_checkpoint
from drhard.pretrained import (
    check_names_and_shapes,
    check_sizes,
    embedding_size,
    find_longest_sequence,
    quiet_transformers,
    read_config,
    read_weights,
)
from drhard.tokenizer import tokenizer_digest
from drhard.tokens import TokenMemmap

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, RobertaConfig, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaPreTrainedModel
from transformers.utils import logging as transformers_logging

log = logging.getLogger(__name__)

transformers_logging.disable_progress_bar()  # transformers' bars for reading and writing weights drown ours

HEAD = ("embeddingHead.bias", "embeddingHead.weight", "norm.bias", "norm.weight")
CONFIG_NOTES = ("_name_or_path", "transformers_version", "dtype", "architectures")  # do not affect a training
PREPROCESS_FOR_MODEL = "run preprocess.py with the tokenizer of this model (--model_name_or_path)"


class RobertaDot(RobertaPreTrainedModel):
    """RoBERTa, then ``LayerNorm(W h + b)`` on the last hidden state h of ``<s>``; no pooler.

    W maps hidden_size to ``config.output_embedding_size`` (hidden_size if the config has none). The score of
    a query and a document is the inner product of their embeddings. Parameters have the names of the published
    checkpoints: ``roberta.*``, ``embeddingHead.*``, ``norm.*``. :func:`load_encoder` reads a checkpoint.
    """

    tokenizer_digest: str | None = None  # digest of the tokenizer files beside the weights

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.output_embedding_size = embedding_size(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.embeddingHead = nn.Linear(config.hidden_size, self.output_embedding_size)
        self.norm = nn.LayerNorm(self.output_embedding_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed a batch.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for a token and 0 for padding.

        Returns:
            (B, dim) embeddings.
        """
        # The published configs set return_dict to false.
        hidden = self.roberta(input_ids, attention_mask, return_dict=True).last_hidden_state  # (B, L, hidden)
        embeddings: torch.Tensor = self.norm(self.embeddingHead(hidden[:, 0]))
        return embeddings


class MixedPrecision(nn.Module):
    """An encoder that computes in ``dtype`` and returns float32.

    DataParallel can wrap it. An autocast around DataParallel would not reach the threads of the other GPUs.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed a batch; see :meth:`RobertaDot.forward`."""
        with torch.autocast(input_ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            embeddings: torch.Tensor = self.model(input_ids, attention_mask)
            return embeddings.float()


def embed_in_chunks(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """Embed a training batch, ``chunk_size`` sequences at a time, in the memory that one chunk needs.

    The activations of a chunk are dropped. The backward pass computes them again, with the same dropout (gradient
    caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021). The
    gradient equals that of the whole batch, except that dropout draws other numbers. Sequences are sorted by length,
    so that a chunk is padded only to its own longest sequence.

    Args:
        model: a :class:`RobertaDot`, or a module that wraps one.
        input_ids, attention_mask: see :meth:`RobertaDot.forward`.

    Returns:
        (B, dim) embeddings, in the order of the batch.
    """
    lengths = attention_mask.sum(1)
    order = lengths.argsort(descending=True)
    embeddings = []
    for chunk in order.split(chunk_size):
        longest = int(lengths[chunk[0]])
        inputs = input_ids[chunk, :longest], attention_mask[chunk, :longest]
        embeddings.append(checkpoint(model, *inputs, use_reentrant=False))
    return torch.cat(embeddings)[order.argsort()]


def load_encoder(name_or_path: str | Path, fresh_head: bool = False) -> RobertaDot:
    """Load a checkpoint: a Hugging Face folder or hub name, with weights as safetensors or ``pytorch_model.bin``.

    Args:
        fresh_head: start the embedding head from random weights if the checkpoint has none, as roberta-base has none.

    Raises:
        InputError: the checkpoint cannot be read, is of another model, or its weights do not fit its config.
    """
    folder = find_checkpoint(name_or_path)
    config, weights = read_config(folder), read_weights(folder)
    check_sizes(folder, config, weights)
    with torch.device("meta"):
        expected = RobertaDot(config).state_dict()
    check_names_and_shapes(folder, weights, expected, HEAD if fresh_head else ())
    if weights.keys() != expected.keys():
        log.warning("%s has no embedding head; it starts from random weights", name_or_path)
    # Copied, not mapped: the file may be rewritten while the model is in use.
    weights = {key: weight.to(torch.float32, copy=True) for key, weight in weights.items()}
    with quiet_transformers():
        model = RobertaDot.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    check_finite(model, str(folder), "the checkpoint is damaged")
    model.tokenizer_digest = tokenizer_digest(folder)
    model.eval()
    return cast(RobertaDot, model)


def check_finite(model: nn.Module, where: str, way_out: str) -> None:
    """Raise InputError if a weight of ``model`` is not finite.

    Args:
        where: the start of the message: the checkpoint, or the step of a training.
        way_out: the end of the message: what is wrong, or what the user can do.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{where}: the weights of {name} are not finite; {way_out}")


def check_tokens(model: RobertaDot, tokens: TokenMemmap) -> None:
    """Check that ``model`` can read ``tokens``. From then on, ``tokens`` checks the ids of each batch as well.

    Raises:
        InputError: a sequence is longer than the model takes, an id is beyond its vocabulary, or the ids come from
            another vocabulary.
    """
    longest = find_longest_sequence(model.config)
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
    tokens.vocabulary = known


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


def save_encoder(model: RobertaDot, folder: str | Path, tokenizer_from: str | Path) -> None:
    """Write a checkpoint folder as a whole: weights as safetensors, config, and the tokenizer's files.

    Args:
        tokenizer_from: the folder to copy ``vocab.json`` and ``merges.txt`` from, if it has them.
    """
    with write_whole_folder(folder, last=CONFIG_FILE) as unfinished:  # a folder without it is not a checkpoint
        model.save_pretrained(unfinished)
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_from) / name).is_file():
                shutil.copy(Path(tokenizer_from) / name, unfinished)
        for path in unfinished.iterdir():
            path.chmod(0o644)  # safetensors lets only the owner read
