"""A synthetic collection with MS MARCO's files and counts, and checkpoints small enough to encode it at home.

Texts are drawn from a Zipf-like vocabulary, so that tokenizer and BM25 see frequent and rare words. The texts have no
meaning: use them to measure time, memory and files, not rankings.
"""

import gzip
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from drhard.files import write_whole_file, write_whole_text
from drhard.model_folder import save_encoder
from drhard.msmarco import CORPORA
from drhard.roberta_dot import RobertaDot

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import RobertaConfig

ROOT = Path(__file__).resolve().parent.parent
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
VOCABULARY = 2000  # tokens
WORDS = 20_000
FEWEST, MOST, LONG = 8, 24, 600  # words of a text: 31 tokens on average; and of a long one, beyond 512 tokens
LONG_SHARE = 0.003  # of the texts
QUERY_WORDS = (3, 9)
LARGEST_QID = 1_200_000  # of MS MARCO's, so that ids and lines are as wide
GRADES = (0, 1, 2, 3)  # of the test judgements
CHUNK = 50_000  # texts made at a time
HIDDEN = 16  # of the encoder, and of its embeddings


@dataclass(frozen=True)
class Counts:
    """The size of a collection.

    Attributes:
        queries: lines in the file of queries of each mode.
        judged: judged queries of each mode; no entry for a mode without judgements.
        judgements: lines in the file of judgements of each mode.
    """

    documents: int
    queries: dict[str, int]
    judged: dict[str, int]
    judgements: dict[str, int]

    def scaled(self, scale: float) -> "Counts":
        """Return counts ``scale`` times as large, but large enough for all commands."""
        judged = {mode: _part(count, scale, 5) for mode, count in self.judged.items()}
        return Counts(
            documents=_part(self.documents, scale, 500),
            queries={mode: max(_part(n, scale, 5), judged.get(mode, 0)) for mode, n in self.queries.items()},
            judged=judged,
            judgements={mode: max(_part(n, scale, 5), judged[mode]) for mode, n in self.judgements.items()},
        )


def _part(count: int, scale: float, least: int) -> int:
    return max(least, round(count * scale))


COUNTS = {  # MS MARCO's own, and TREC DL 2019's judgements
    "passage": Counts(
        documents=8_841_823,
        queries={"train": 808_731, "dev": 6_980, "test": 200, "lead": 6_837},
        judged={"train": 502_939, "dev": 6_980, "test": 43},
        judgements={"train": 532_761, "dev": 7_437, "test": 9_260},
    ),
    "doc": Counts(
        documents=3_213_835,
        queries={"train": 367_013, "dev": 5_193, "test": 200, "lead": 5_793},
        judged={"train": 367_013, "dev": 5_193, "test": 43},
        judgements={"train": 367_013, "dev": 5_193, "test": 16_258},
    ),
}


@cache
def words() -> list[str]:
    """Return the vocabulary, frequent words first: all words of one and two syllables, and some of three."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    count, random = len(syllables), np.random.default_rng(0)
    longest = random.choice(count**3, WORDS - count - count**2, replace=False)
    triples = zip(*(part.tolist() for part in np.unravel_index(longest, (count,) * 3)), strict=True)
    pairs = random.permutation([first + second for first in syllables for second in syllables]).tolist()
    return [*syllables, *pairs, *("".join(syllables[part] for part in triple) for triple in triples)]


class Texts:
    """Endless texts. Words are drawn independently, the n-th most frequent in proportion to 1 / (n + 10)."""

    def __init__(self, seed: int):
        self._words = words()
        self._random = np.random.default_rng(seed)
        self._bounds = np.cumsum(1 / (np.arange(WORDS) + 10))
        self._bounds /= self._bounds[-1]

    def draw(self, lengths: np.ndarray) -> list[str]:
        """Draw texts of ``lengths`` (n,) words."""
        # The bounds end at 1, which random() never gives.
        numbers = np.searchsorted(self._bounds, self._random.random(int(lengths.sum())), side="right")
        drawn = map(self._words.__getitem__, numbers.tolist())
        return [" ".join(itertools.islice(drawn, length)) for length in lengths.tolist()]

    def documents(self, count: int) -> Iterator[list[str]]:
        """Yield ``count`` documents, ``CHUNK`` at a time."""
        for first in range(0, count, CHUNK):
            size = min(CHUNK, count - first)
            lengths = self._random.integers(FEWEST, MOST + 1, size)
            lengths[self._random.random(size) < LONG_SHARE] = LONG
            yield self.draw(lengths)


def write_collection(data_type: str, counts: Counts, folder: Path) -> None:
    """Write all of ``dataset/``, except files that exist.

    Args:
        folder: the folder for MS MARCO's files. The file of documents is gzipped, as the download is.
    """
    corpus = CORPORA[data_type]
    texts = Texts(seed=1)
    path = folder / (corpus.collection + (".gz" if data_type == "doc" else ""))
    if not path.exists():
        with (
            write_whole_file(path) as raw,
            tqdm(total=counts.documents, unit="doc", unit_scale=True, desc="writing") as bar,
        ):
            file = gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) if data_type == "doc" else raw
            for chunk in texts.documents(counts.documents):
                lines = zip(range(bar.n, bar.n + len(chunk)), chunk, strict=True)
                if data_type == "doc":
                    made = (f"D{row + 1}\thttp://{text[:8].strip()}.com\t{text[:30]}\t{text}\n" for row, text in lines)
                else:
                    made = (f"{row}\t{text}\n" for row, text in lines)
                file.write("".join(made).encode())
                bar.update(len(chunk))
            if data_type == "doc":
                file.close()
    random = np.random.default_rng(2)
    qids = random.permutation(LARGEST_QID)[: sum(counts.queries.values())]
    for mode, files in corpus.modes.items():
        own, qids = np.split(qids, [counts.queries[mode]])
        if not (folder / files.queries).exists():
            lengths = random.integers(*QUERY_WORDS, len(own))
            with write_whole_text(folder / files.queries) as file:
                file.writelines(f"{q}\t{text}\n" for q, text in zip(own.tolist(), texts.draw(lengths), strict=True))
        if files.qrels and not (folder / files.qrels).exists():
            judged, total = own[: counts.judged[mode]], counts.judgements[mode]
            write_judgements(folder / files.qrels, judged, total, counts.documents, corpus.pid_prefix, mode == "test")


def write_judgements(
    path: Path, qids: np.ndarray, total: int, documents: int, prefix: str = "", graded: bool = False
) -> None:
    """Write ``total`` judgements, spread evenly over ``qids``, without repeating a pair.

    Args:
        documents: the number of documents. Their ids start at 0, or at 1 with a prefix.
        prefix: the prefix of document ids.
        graded: use grades 0 to 3, with one 3 for each query. Otherwise all grades are 1.
    """
    random = np.random.default_rng(total)
    turn = np.arange(total) // len(qids)  # counts the judgements of each query
    apart = max(1, documents // (turn[-1] + 1))  # a query's documents start at random and are equally far apart
    pids = np.resize(random.integers(0, documents, len(qids)), total) + turn * apart
    pids = pids % documents + (1 if prefix else 0)
    grades = random.choice(GRADES, total) if graded else np.ones(total, dtype=np.int64)
    grades[: len(qids)] = GRADES[-1] if graded else 1
    tab = " " if prefix else "\t"  # as the official files have it
    with write_whole_text(path) as file:
        for qid, pid, grade in zip(np.resize(qids, total).tolist(), pids.tolist(), grades.tolist(), strict=True):
            file.write(f"{qid}{tab}0{tab}{prefix}{pid}{tab}{grade}\n")


@cache
def _vocabulary() -> ByteLevelBPETokenizer:
    bpe = ByteLevelBPETokenizer()
    texts = [" " + word for word in words()]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    return bpe


def write_published(root: Path, dim: int = HIDDEN) -> None:
    """Write a stand-in for roberta-base and for each checkpoint that download_data.sh --models fetches.

    Args:
        root: the data root. ``roberta-base`` goes beside it, where commands find it by name.
        dim: dimensions of an embedding.
    """
    write_checkpoint(root.parent / "roberta-base", 0, dim)
    downloads = json.loads((ROOT / "data" / "downloads.json").read_text(encoding="utf-8"))
    for seed, published in enumerate(downloads["checkpoints"], start=1):
        write_checkpoint(root / published["dataset"] / published["folder"], seed, dim)


def write_checkpoint(folder: Path, seed: int, dim: int = HIDDEN) -> None:
    """Write an encoder of one layer. Its random weights are large, so that embeddings of different texts differ."""
    folder.mkdir(parents=True, exist_ok=True)
    _vocabulary().save_model(str(folder))
    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        layer_norm_eps=1e-5,
        output_embedding_size=dim,
    )
    model = RobertaDot(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    save_encoder(model, folder, tokenizer_from=folder)
