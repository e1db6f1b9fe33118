"""Load and save encoders: the published checkpoints, sentence-transformers folders, plain transformers encoders."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from drhard.encoder import Encoder, check_finite
from drhard.errors import InputError, reason_of
from drhard.files import write_json, write_whole_folder, write_whole_text
from drhard.hub import ALL_TOKENIZER_FILES, CONFIG_FILE, SAFETENSORS_FILE, TOKENIZER_FILES, find_checkpoint
from drhard.model_tokenizer import define_published, is_published, load_tokenizer
from drhard.pooled import PooledEncoder
from drhard.pretrained import (
    architecture_of,
    check_names_and_shapes,
    check_sizes,
    quiet_transformers,
    read_config,
    read_weights,
)
from drhard.roberta_dot import HEAD, RobertaDot, embedding_size
from drhard.sentence_files import (
    LENGTH_FILE,
    MODULES_FILE,
    PROMPTS_FILE,
    find_transformer,
    read_module_list,
    read_prompts,
)
from drhard.sentence_modules import Normalize, SentenceModules, read_modules
from drhard.tokenizer import RobertaTokenizer

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


def load_encoder(
    name_or_path: str | Path, fresh_head: bool = False, pooling: str | None = None, normalize: bool = False
) -> Encoder:
    """Load a checkpoint: a folder or hub name, with weights as safetensors or ``pytorch_model.bin``.

    Three kinds of folders are known. What the folder says decides.

    - The published checkpoints and those of star/train.py and adore/train.py: a :class:`RobertaDot`.
    - sentence-transformers' folders, with ``modules.json``: a :class:`PooledEncoder`.
    - Plain encoders of transformers: a :class:`PooledEncoder` with ``pooling``; without it, RoBERTa is the start of
      a :class:`RobertaDot`.

    Args:
        fresh_head: start the embedding head from random weights if the checkpoint has none, as roberta-base has none.
        pooling, normalize: "cls" or "mean", and whether embeddings get the length 1, for a plain encoder.

    Raises:
        InputError: the checkpoint cannot be read, is of another model, or its weights do not fit its config; or
            ``pooling`` is missing, or the folder says otherwise.
    """
    folder = find_checkpoint(name_or_path)
    if is_published(folder, own_tokenizer=pooling is not None):
        _refuse_pooling(folder, pooling, normalize, "its own head")
        model: Encoder = _load_robertadot(folder, fresh_head)
    elif (folder / MODULES_FILE).exists():
        modules = read_modules(folder)
        _refuse_pooling(folder, pooling, normalize, f"the pooling {modules.pooling}")
        model = _load_pooled(modules)
    else:
        if pooling is None:
            raise InputError(f"{folder}: does not say how to pool its hidden states; give --pooling cls or mean")
        model = _load_pooled(SentenceModules(folder, pooling, [Normalize()] if normalize else []))
    check_finite(model, str(folder), "the checkpoint is damaged")
    tokenizer = load_tokenizer(folder, own_tokenizer=pooling is not None)
    model.tokenizer_digest = tokenizer.digest() if tokenizer else None
    model.eval()
    return model


def load_encoder_beside(other: Encoder, name_or_path: str | Path) -> Encoder:
    """Load the encoder of documents for an encoder of queries, or the reverse.

    A plain encoder of transformers does not say how it is pooled. It is pooled as ``other`` is: ADORE started from it.

    Raises:
        InputError: as :func:`load_encoder`.
    """
    folder = find_checkpoint(name_or_path)
    if is_published(folder) or (folder / MODULES_FILE).exists():
        return load_encoder(folder)
    return load_encoder(folder, pooling=other.describe().pooling, normalize=other.normalized)


def _refuse_pooling(folder: Path, pooling: str | None, normalize: bool, what: str) -> None:
    if pooling is not None or normalize:
        raise InputError(f"{folder}: has {what}; omit --pooling and --normalize")


def _load_robertadot(folder: Path, fresh_head: bool) -> RobertaDot:
    config = read_config(folder, untyped="roberta")  # published checkpoints name no type
    weights = read_weights(folder, architecture_of(config))
    check_sizes(folder, config, weights)
    head, size = weights.get("embeddingHead.weight"), embedding_size(config)
    if head is not None and head.dim() == 2 and len(head) != size:
        raise InputError(f"{folder / CONFIG_FILE}: output_embedding_size is {size}, but the weights have {len(head)}")
    weights = {
        f"roberta.{name}" if name.startswith(("embeddings.", "encoder.")) else name: weight
        for name, weight in weights.items()
    }
    with torch.device("meta"):
        expected = RobertaDot(config).state_dict()
    check_names_and_shapes(folder, weights, expected, HEAD if fresh_head else ())
    if weights.keys() != expected.keys():
        log.warning("%s has no embedding head; it starts from random weights", folder)
    # Copied, not mapped: the file may be rewritten while the model is in use.
    weights = {key: weight.to(torch.float32, copy=True) for key, weight in weights.items()}
    with quiet_transformers():
        model = RobertaDot.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    assert isinstance(model, RobertaDot)
    if (folder / MODULES_FILE).exists():
        model.prompts = read_prompts(folder)
    return model


def _load_pooled(modules: SentenceModules) -> PooledEncoder:
    place = modules.folder
    config = read_config(place)
    weights = read_weights(place, architecture_of(config))
    check_sizes(place, config, weights)
    with torch.device("meta"):
        expected = _build(config, place).state_dict()
    check_names_and_shapes(place, weights, expected, ())
    backbone = _build(config, place)
    backbone.load_state_dict({name: weight.to(torch.float32) for name, weight in weights.items()})
    return PooledEncoder(backbone, modules)


def _build(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    options = {"add_pooling_layer": False} if architecture_of(config).pooler else {}
    try:
        with quiet_transformers():
            model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32, **options)
            return model
    except Exception as error:  # transformers' classes check their fields with errors of many types
        raise InputError(f"{folder / CONFIG_FILE}: the model cannot be built ({reason_of(error)})") from None


# Save


def save_encoder(
    model: Encoder, folder: str | Path, tokenizer_from: str | Path, notes: Mapping[str, object] | None = None
) -> None:
    """Write a checkpoint folder as a whole. transformers and sentence-transformers read it with equal embeddings.

    Args:
        tokenizer_from: the checkpoint to copy the files of the tokenizer from.
        notes: the names of further files, and their content for JSON.
    """
    with write_whole_folder(folder, last=CONFIG_FILE) as unfinished:  # a folder without it is not a checkpoint
        write_encoder(model, unfinished, Path(tokenizer_from))
        for name, content in (notes or {}).items():
            write_json(unfinished / name, content, indent=1)
        let_all_read(unfinished)


def list_model_files(folder: Path) -> list[str]:
    """Return the names of the files that :func:`save_encoder` wrote into ``folder``, without the notes."""
    own = (CONFIG_FILE, SAFETENSORS_FILE, MODULES_FILE, LENGTH_FILE, PROMPTS_FILE, *ALL_TOKENIZER_FILES)
    paths = [folder / name for name in own if (folder / name).is_file()]
    for _, place in read_module_list(folder)[1:]:
        paths += place.iterdir()
    return [str(path.relative_to(folder)) for path in paths]


def let_all_read(folder: Path) -> None:
    """Let everybody read the files under ``folder``. safetensors lets only the owner read."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def write_encoder(model: Encoder, folder: Path, tokenizer_from: Path) -> None:
    """Write the files of a checkpoint into ``folder``."""
    model.save(folder)
    write_tokenizer(model, folder, tokenizer_from)
    if isinstance(model, RobertaDot):
        _copy(TOKENIZER_FILES, tokenizer_from, folder)


def write_tokenizer(model: Encoder, folder: Path, tokenizer_from: Path) -> None:
    """Write what makes transformers give the ids that ``model`` was trained with, if ``tokenizer_from`` has it."""
    if not isinstance(model, RobertaDot):
        _copy(ALL_TOKENIZER_FILES, find_transformer(tokenizer_from), folder)
        return
    if not all((tokenizer_from / name).is_file() for name in TOKENIZER_FILES):
        return
    tokenizer = RobertaTokenizer.from_pretrained(tokenizer_from, do_lower_case=True)
    with write_whole_text(folder / "tokenizer.json") as file:
        file.write(define_published(tokenizer))
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    # With the class of RoBERTa, transformers would build its own tokenizer from the vocabulary.
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {name: getattr(tokenizer, name) for name in names}
    write_json(folder / "tokenizer_config.json", config | {"clean_up_tokenization_spaces": False}, indent=2)


def _copy(names: Iterable[str], source: Path, folder: Path) -> None:
    """Copy those of the files that ``source`` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, folder)
