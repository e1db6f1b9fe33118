"""Small things that several test modules make: a vocabulary, an encoder, token memmaps, processes."""

import gzip
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import chdir, contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from types import ModuleType

import drhard.workers
from drhard.model_folder import load_encoder, save_encoder
from drhard.model_tokenizer import load_tokenizer
from drhard.roberta_dot import RobertaDot
from drhard.tokenizer import RobertaTokenizer
from drhard.tokens import PASSAGES, TokenMemmap, query_name
from drhard.workers import Batch, Rows

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

ROOT = Path(__file__).resolve().parent.parent
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
VOCAB_SIZE = 300
TEXTS = (
    "where is the river rhine and where does the river end",
    "the rhine is a river that rises in the alps and ends in the north sea",
    "a star is a ball of plasma that gravity holds together",
    "an encoder turns a text into a vector and a query into another",
)

WORDS = 60  # in the vocabulary
SIZES = {  # of small encoders
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
KINDS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
    "mpnet": MPNetConfig(**SIZES),
    "distilbert": DistilBertConfig(
        vocab_size=WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40, pad_token_id=1
    ),
    "modernbert": ModernBertConfig(
        **SIZES, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, local_attention=8
    ),
}


@cache
def vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Tokens with their ids, and merges, of a byte-level BPE trained on :data:`TEXTS`."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=False)
    merges = json.loads(bpe._tokenizer.to_str())["model"]["merges"]
    assert len(merges) > 20
    return bpe.get_vocab(), tuple(map(tuple, merges))


def save_vocabulary(folder: Path) -> Path:
    """Write ``vocab.json`` and ``merges.txt`` of :func:`vocabulary` as the tokenizers package spells them."""
    vocab, merges = vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def word_pieces(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words of :data:`TEXTS`, with ``size`` tokens at most, in lower case."""
    words = list(dict.fromkeys(" ".join(TEXTS).split()))
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *words][:size]
    tokenizer = Tokenizer(WordLevel({name: id_ for id_, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tiny_config(dropout: float = 0.0, **options: int) -> RobertaConfig:
    """A configuration with two layers, 16 wide."""
    return RobertaConfig(
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 34,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "layer_norm_eps": 1e-5,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
        | options
    )


def tiny_model(seed: int = 0, dropout: float = 0.0, **options: int) -> RobertaDot:
    """An encoder with random weights, large enough for embeddings to differ clearly."""
    torch.manual_seed(seed)
    model = RobertaDot(tiny_config(dropout, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def save_tiny(folder: Path, seed: int = 0, dropout: float = 0.0, **options: int) -> Path:
    """Write the checkpoint of a :func:`tiny_model`."""
    save_encoder(tiny_model(seed, dropout, **options), folder, tokenizer_from="")
    return folder


def save_plain(folder: Path, kind: str) -> Path:
    """A transformers encoder with random weights and a tokenizer of its own."""
    torch.manual_seed(3)
    model = AutoModel.from_config(KINDS[kind])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    word_pieces(WORDS).save_pretrained(folder)
    return folder


def embed_texts(folder: Path, width: int = 32) -> np.ndarray:
    """The embeddings of :data:`TEXTS`, cut at ``width`` tokens, by the model and the tokenizer of a checkpoint."""
    model, tokenizer = load_encoder(folder), load_tokenizer(folder)
    assert tokenizer is not None
    rows, lengths = tokenizer.encode_rows(TEXTS, width)
    mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
    ids = torch.from_numpy(rows.astype(np.int64)).where(mask > 0, model.config.pad_token_id)
    with torch.no_grad():
        embeddings: np.ndarray = model(ids, mask).numpy()
    return embeddings


def random_sequences(count: int, longest: int, seed: int, vocabulary: int = VOCAB_SIZE) -> list[list[int]]:
    """``<s> ... </s>`` of random ordinary tokens, 3 to ``longest`` ids each."""
    random = np.random.default_rng(seed)
    return [[0, *random.integers(5, vocabulary, random.integers(1, longest - 1)).tolist(), 2] for _ in range(count)]


def write_tokens(folder: Path, name: str, sequences: Sequence[Sequence[int]], width: int, dtype: str = "int32") -> Path:
    """Write a token memmap with its meta and lengths as the design describes them, padded with 0."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.zeros((len(sequences), width), dtype=dtype)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    rows.tofile(folder / f"{name}.memmap")
    np.save(folder / f"{name}_length.npy", np.array([len(sequence) for sequence in sequences]))
    meta = {"type": dtype, "total_number": len(sequences), "embedding_size": width}
    (folder / f"{name}_meta").write_text(json.dumps(meta))
    return folder


def open_tokens(folder: Path, sequences: Sequence[Sequence[int]], width: int, length: int | None = None) -> TokenMemmap:
    """:func:`write_tokens` for passages, opened with ``length`` (default: all of the width)."""
    return TokenMemmap.open(write_tokens(folder, PASSAGES, sequences, width), PASSAGES, length or width)


def write_collection(
    folder: Path,
    passages: int = 12,
    queries: int = 6,
    mode: str = "train",
    seed: int = 0,
    vocabulary: int = VOCAB_SIZE,
) -> Path:
    """Write a ``preprocess`` folder in which passage i is relevant to query i."""
    write_tokens(folder, PASSAGES, random_sequences(passages, 12, seed, vocabulary), 16)
    write_tokens(folder, query_name(mode), random_sequences(queries, 6, seed + 1, vocabulary), 8)
    write_qrels(folder / f"{mode}-qrel.tsv", {query: [query] for query in range(queries)})
    return folder


def write_qrels(path: Path, relevant: Mapping[int, Iterable[int]]) -> Path:
    """Write qrels in rows, all of grade 1."""
    path.write_text("".join(f"{qid}\t0\t{pid}\t1\n" for qid, pids in relevant.items() for pid in pids))
    return path


def write_sample(folder: Path) -> None:
    """The sample with 300 passages, and the queries that are judged for them."""
    shutil.copytree(ROOT / "data" / "sample" / "passage" / "dataset", folder)
    with gzip.open(folder / "collection.tsv.gz", "rt") as file:
        lines = [line for line, _ in zip(file, range(300), strict=False)]
    with gzip.open(folder / "collection.tsv.gz", "wt") as file:
        file.writelines(lines)
    pids = {line.split("\t")[0] for line in lines}
    for path in folder.glob("*qrels*"):
        kept = [line for line in path.read_text().splitlines(keepends=True) if line.split()[2] in pids]
        path.write_text("".join(kept))


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files under ``folder`` with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class AtOnce:
    """A pool without processes."""

    def __init__(self, tokenizer: RobertaTokenizer):
        drhard.workers._tokenizer = tokenizer

    def submit(self, function: Callable[[Batch], Rows], batch: Batch) -> "Future[Rows]":
        future: Future[Rows] = Future()
        future.set_result(function(batch))
        return future


@contextmanager
def no_larger_files_than(count: int) -> Iterator[None]:
    """A full disk, as this process sees it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_python(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words behind it, and these variables beside those of this process."""
    # One thread: the models are tiny, and waiting for a second core costs more than it brings.
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600, check=False)


def run_script(script: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a process, as a user does."""
    return run_python(ROOT / script, *arguments, cwd=cwd)


def run_without(
    modules: Iterable[str], script: str, *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script that ends with an ImportError if it imports one of ``modules``."""
    hide = f"sys.modules.update(dict.fromkeys({tuple(modules)}))"
    run = f"import runpy, sys; {hide}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return run_python("-c", run, ROOT / script, *arguments, cwd=cwd, PYTHONPATH=str(ROOT))


def load_script(script: str) -> ModuleType:
    """Import a script, for tests in which the start of a process would take longer than the rest."""
    name = "script_" + re.sub(r"\W", "_", script)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend((ROOT / script).parent)  # where Python looks first when it runs the script
            spec.loader.exec_module(module)
    return sys.modules[name]


@contextmanager
def given(script: str, *arguments: object) -> Iterator[ModuleType]:
    """The module of a script, while the command line has these arguments."""
    module = load_script(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        yield module


def call_script(script: str, *arguments: object) -> None:
    """Run a script's ``main`` in this process. Raises SystemExit as the process would end."""
    with given(script, *arguments) as module:
        module.main()


def must_run(script: str, *arguments: object, cwd: Path) -> str:
    """Run a script that has to end well, in this process and the folder ``cwd``; return what it printed."""
    printed = StringIO()
    with chdir(cwd), redirect_stdout(printed):
        call_script(script, *arguments)
    return printed.getvalue()


def parse_flags(script: str, *arguments: object) -> Namespace:
    """The flags of a script as it reads them. Raises SystemExit for flags that it refuses."""
    with given(script, *arguments) as module:
        return module.parse_arguments()


def the_error(stderr: str) -> str:
    """The one sentence that bad input gets on standard error; fails if there is more or something else."""
    assert "Traceback" not in stderr, stderr
    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert lines[-1] == errors[0], stderr
    return errors[0]


def refused(script: str, *arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a script in this process that must refuse its input; return its sentence."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call_script(script, *arguments)
    assert ended.value.code == 2
    return the_error(capsys.readouterr().err)
