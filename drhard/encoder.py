"""The encoder of queries and documents, and its checkpoints."""

import copy
import hashlib
import logging
import pickle
import shutil
from pathlib import Path

from drhard.errors import InputError
from drhard.files import whole_folder
from drhard.onednn import with_linear_layers

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import RobertaConfig, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaPreTrainedModel
from transformers.utils import logging as transformers_logging

log = logging.getLogger(__name__)

transformers_logging.disable_progress_bar()  # its bars for reading and writing weights drown ours

TOKENIZER_FILES = ("vocab.json", "merges.txt")
_HEAD = ("embeddingHead.", "norm.")


class RobertaDot(RobertaPreTrainedModel):
    """RoBERTa, then ``LayerNorm(W h + b)`` on the last hidden state h of ``<s>``; no pooler.

    W maps hidden_size to ``config.output_embedding_size`` (hidden_size if the config has none). The score of
    a query and a document is the inner product of their embeddings. Parameter names are those of the published
    checkpoints: ``roberta.*``, ``embeddingHead.*``, ``norm.*``.
    """

    _keys_to_ignore_on_load_unexpected = [
        r"position_ids", r"pooler", r"lm_head", r"classifier", r"classification_head",
    ]  # fmt: skip

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.output_embedding_size = getattr(config, "output_embedding_size", None) or config.hidden_size
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.embeddingHead = nn.Linear(config.hidden_size, self.output_embedding_size)
        self.norm = nn.LayerNorm(self.output_embedding_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed a batch.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 where there is a token and 0 where there is padding.

        Returns:
            (B, dim) embeddings.
        """
        # return_dict: the published configs say false
        hidden = self.roberta(input_ids, attention_mask, return_dict=True).last_hidden_state  # (B, L, hidden)
        return self.norm(self.embeddingHead(hidden[:, 0]))


class MixedPrecision(nn.Module):
    """An encoder that computes in ``dtype`` and returns float32; on several GPUs too, unlike autocast around it."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """As :meth:`RobertaDot.forward`."""
        with torch.autocast(input_ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(input_ids, attention_mask).float()


def for_cpu(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference on the CPU, its linear layers by oneDNN; the parameters are shared.

    Embeddings are equal to float32's accuracy. Where torch has no oneDNN the model itself is returned.
    """
    if not torch.backends.mkldnn.is_available():
        return model
    return with_linear_layers(copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}))


def embed_in_chunks(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """Embed a batch of a training, ``chunk_size`` sequences at a time, with the memory of as many.

    The activations of a chunk are forgotten and computed again, with the same dropout, when the gradient gets to
    it (gradient caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    2021). Gradients are those of the whole batch, but for what dropout happens to draw. Sequences of like length are
    put together, so that a chunk is padded to its own longest one only.

    Args:
        model: a :class:`RobertaDot`, or what wraps it.
        input_ids, attention_mask: as :meth:`RobertaDot.forward` takes them.

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
    """Load a checkpoint (a Hugging Face folder or hub name; safetensors, or ``pytorch_model.bin`` weights only).

    Args:
        fresh_head: if the checkpoint has no embedding head at all, as roberta-base has none, start one from
            random weights instead of raising.

    Raises:
        InputError: the checkpoint cannot be read, or weights are missing in it.
    """
    name = str(name_or_path)
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):  # no name on the hub
        raise InputError(f"{name}: no such folder; download_data.sh --models fetches the published checkpoints")
    try:
        model, info = RobertaDot.from_pretrained(name, dtype=torch.float32, output_loading_info=True, weights_only=True)
    except pickle.UnpicklingError:  # torch's own sentence advises to read it all the same
        raise InputError(f"{name}: pytorch_model.bin is damaged or holds more than weights") from None
    except Exception as error:  # no folder, no such name, no config, damaged weights, …: many types, all bad input
        raise InputError(f"{name}: cannot be read as a checkpoint: {_first_line(error)}") from None
    missing = sorted(info["missing_keys"])
    if info["mismatched_keys"]:
        key = sorted(info["mismatched_keys"])[0]
        raise InputError(f"{name}: the shape of {key} does not fit config.json")
    if fresh_head and missing and all(key.startswith(_HEAD) for key in missing) and len(missing) == 4:
        log.warning("%s has no embedding head; it starts from random weights", name)
    elif missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{name}: the checkpoint lacks the weights {', '.join(missing[:3])}{more}; "
            "is it a STAR or ADORE checkpoint, and is the download complete?"
        )
    return model.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_lengths(model: RobertaDot, name: str, lengths: np.ndarray) -> None:
    """Raise InputError if ``lengths`` (rows,), those of the sequences ``name``, exceed what the model takes."""
    longest = model.config.max_position_embeddings - model.config.pad_token_id - 1
    if lengths.max() > longest:
        raise InputError(
            f"{name}: has sequences of {lengths.max()} tokens, the model takes at most {longest}; "
            "lower the maximal length"
        )


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters: the same for .bin and safetensors files."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def save_encoder(model: RobertaDot, folder: str | Path, tokenizer_from: str | Path) -> None:
    """Write a checkpoint folder, whole: weights as safetensors, config, and the tokenizer's files.

    Args:
        tokenizer_from: the checkpoint whose ``vocab.json`` and ``merges.txt`` go along, if it is a folder that
            has them.
    """
    with whole_folder(folder, last="config.json") as unfinished:  # without its config a folder is no checkpoint
        model.save_pretrained(unfinished)
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_from) / name).is_file():
                shutil.copy(Path(tokenizer_from) / name, unfinished)
        for path in unfinished.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner alone
