"""Search with a query that is typed: a text in, passages out, as the inference scripts would rank them."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drhard.answers import Answer, Hit, Ranking
from drhard.collection import Collection
from drhard.embeddings import are_made_by, open_document_embeddings
from drhard.encoder import PREPROCESS_FOR_MODEL, Encoder
from drhard.errors import InputError
from drhard.index import Index
from drhard.known_queries import KnownQueries, KnownQuery
from drhard.model_folder import load_encoder, load_encoder_beside
from drhard.model_tokenizer import Tokenizer, open_tokenizer
from drhard.names import OfficialIds
from drhard.passage_texts import PassageTexts
from drhard.settings import SearchSettings
from drhard.tokens import PREPROCESS_AGAIN

import numpy as np
import torch

COMPARED = 100  # ranks in which a passage of one ranking is looked for in the other
LONG_SEARCH = 1e9  # bytes of embeddings: reading more takes seconds, so a bar is shown


class QueryEncoder:
    """An encoder with its tokenizer. It embeds a text as preprocess.py and the inference scripts do together.

    Args:
        prompt: the text in front of each query.
        max_length: the number of tokens at which queries are cut, if the model takes as many.
    """

    def __init__(self, model: Encoder, tokenizer: Tokenizer, prompt: str, max_length: int):
        self._model, self._tokenizer = model, tokenizer
        self._prompt, self._max_length = prompt, min(max_length, model.longest_sequence)

    def tokenize(self, query: str) -> np.ndarray:
        """Return the token ids (L,) int64. Raises InputError if the model does not know one."""
        rows, lengths = self._tokenizer.encode_rows([self._prompt + query], self._max_length)
        ids = rows[0, : lengths[0]].astype(np.int64)
        known = self._model.config.vocab_size
        if ids.max() >= known:
            raise InputError(f"the tokenizer gives the id {ids.max()}, the model knows 0 to {known - 1}")
        return ids

    @torch.inference_mode()
    def embed(self, query: str) -> np.ndarray:
        """Return the embedding (1, dim) float32. Raises InputError as :meth:`tokenize`."""
        ids = torch.from_numpy(self.tokenize(query))[None].to(self._model.device)
        embedding: np.ndarray = self._model(ids, torch.ones_like(ids)).float().cpu().numpy()
        return embedding


@dataclass(frozen=True)
class Models:
    """The models and the embeddings of a retriever.

    Attributes:
        documents: the model that made the embeddings: a folder or hub name.
        queries: the model that embeds queries. With ADORE, it is another one.
        embeddings: passages.memmap, as star/inference.py wrote it.
        pooling, normalize: for a plain encoder; see :func:`drhard.model_folder.load_encoder`.
    """

    documents: str
    queries: str
    embeddings: Path
    pooling: str | None = None
    normalize: bool = False

    def load(self, collection: Collection, max_length: int, device: torch.device) -> tuple[QueryEncoder, np.ndarray]:
        """Load the encoder of queries, and open the embeddings (rows, dim) without reading them.

        Raises:
            InputError: the embeddings were made by a model other than ``documents`` or from other passages, or the
                query model has a tokenizer other than that of the passages.
        """
        model = load_encoder(self.queries, pooling=self.pooling, normalize=self.normalize)
        embeddings = open_document_embeddings(self.embeddings, model.output_embedding_size, collection)
        maker = model if self.documents == self.queries else load_encoder_beside(model, self.documents)
        if not are_made_by(self.embeddings, maker.fingerprint()):
            raise InputError(
                f"{self.embeddings}: was not made by {self.documents}; give the model that made it, and another "
                "encoder of queries, such as ADORE's, beside it"
            )
        tokenizer = open_tokenizer(self.queries, own_tokenizer=self.pooling is not None)
        if collection.has_passages and collection.passages.tokenizer not in (None, tokenizer.digest()):
            raise InputError(
                f"{collection.passages.path}: was made with a tokenizer other than that of {self.queries}; "
                f"{PREPROCESS_FOR_MODEL}"
            )
        prompt = model.prompts.get("query", collection.find_query_prompt())
        return QueryEncoder(model.to(device), tokenizer, prompt, max_length), embeddings


@dataclass(frozen=True)
class Searcher:
    """An open retriever: an encoder of queries, and an index of passages.

    Attributes:
        name: what to call it.
        count: the number of passages.
        depth: how many of them to search for.
    """

    name: str
    encoder: QueryEncoder
    index: Index
    count: int
    depth: int

    def search(self, query: str) -> tuple[list[int], list[float]]:
        """Return the rows and the scores of up to ``depth`` passages, best first.

        Raises:
            InputError: as :meth:`QueryEncoder.tokenize` and :meth:`drhard.index.Index.search`.
        """
        scores, rows = self.index.search(self.encoder.embed(query), self.depth)
        found = rows[0] >= 0  # a compressed index may find fewer
        return rows[0][found].tolist(), scores[0][found].tolist()


def open_searchers(
    models: Sequence[Models],
    collection: Collection,
    max_length: int,
    device: torch.device,
    searching: SearchSettings,
    topk: int,
) -> list[Searcher]:
    """Open retrievers of the passages of ``collection``. Those with the same embeddings share an index.

    Args:
        max_length: the number of tokens at which queries are cut.
        topk: passages of an answer.

    Raises:
        InputError: as :meth:`Models.load`, :meth:`SearchSettings.check` and :meth:`SearchSettings.open`.
    """
    left_out = collection.left_out
    indexes: dict[Path, Index] = {}
    searchers = []
    for of in models:
        encoder, embeddings = of.load(collection, max_length, device)
        found = len(embeddings) - len(left_out)
        # A comparison of two models looks for a passage in more ranks than are shown.
        depth = min(max(topk, COMPARED), found) if len(models) > 1 else topk
        if of.embeddings not in indexes:
            searching.check(topk, found, embeddings.shape[1])
            shown = replace(searching, progress=searching.progress and embeddings.nbytes > LONG_SEARCH)
            indexes[of.embeddings] = shown.open(embeddings, depth, left_out)
        searchers.append(Searcher(of.queries, encoder, indexes[of.embeddings], len(embeddings), depth))
    return searchers


class Passages:
    """The official ids of the passages, and their texts.

    Args:
        ids: of all rows.
        texts: None if they are missing.
    """

    def __init__(self, ids: OfficialIds, texts: PassageTexts | None):
        self._ids, self._texts = ids, texts

    def __len__(self) -> int:
        return len(self._ids)

    def official_ids(self, rows: Sequence[int]) -> list[str]:
        """Return the official ids of ``rows``."""
        return self._ids.take(rows)

    def texts(self, rows: Sequence[int]) -> Sequence[str | None]:
        """Return the texts of ``rows``. Raises InputError as :meth:`PassageTexts.read`."""
        return [None] * len(rows) if self._texts is None else self._texts.read(rows)


class PassageSearch:
    """Answers queries. Several threads may ask; they are served one at a time.

    Args:
        searchers: one, or two to compare.
        known: the queries of the collection.
        topk: passages of an answer.

    Attributes:
        names: of the searchers.

    Raises:
        InputError: there are not as many passages as embeddings.
    """

    def __init__(self, searchers: Sequence[Searcher], passages: Passages, known: KnownQueries, topk: int):
        for searcher in searchers:
            if searcher.count != len(passages):
                raise InputError(f"{searcher.name}: has {searcher.count} embeddings for {len(passages)} passages")
        self.names = [searcher.name for searcher in searchers]
        self._searchers, self._passages, self._known, self._topk = searchers, passages, known, topk
        self._lock = threading.Lock()

    def ask(self, query: str) -> Answer:
        """Answer a typed query.

        Raises:
            InputError: as :meth:`Searcher.search` and :meth:`PassageTexts.read`; or the query is not UTF-8.
        """
        if any("\ud800" <= character <= "\udfff" for character in query):  # bytes that Python could not decode
            raise InputError(f"the query {query[:40]!r} is not UTF-8 text")
        line = " ".join(query.splitlines()).replace("\t", " ").rstrip()  # what a file of queries can hold
        with self._lock:
            return self._answer(line, self._known.find(line))

    def ask_known(self, mode: str, qid: str) -> Answer:
        """Answer a query of the collection. Raises InputError as :meth:`ask`, and if there is no such query."""
        with self._lock:
            known = self._known.get(mode, qid)
            return self._answer(known.text, known)

    def _answer(self, query: str, known: KnownQuery | None) -> Answer:
        grades = known.grades if known else {}
        if max(grades, default=0) >= len(self._passages):
            raise InputError(
                f"the {known and known.mode} judgements name passage {max(grades)}, there are {len(self._passages)}; "
                f"{PREPROCESS_AGAIN}"
            )
        found = [self._search(searcher, query) for searcher in self._searchers]
        rankings = []
        for place, (rows, scores, seconds) in enumerate(found):
            others = found[1 - place][0] if len(found) > 1 else []
            hits = self._hits(rows[: self._topk], scores, grades, others)
            rankings.append(Ranking(self.names[place], seconds, hits))
        relevant = self._passages.official_ids([row for row, grade in grades.items() if grade > 0])
        return Answer(query, known, relevant, rankings, self._searchers[0].depth)

    def _hits(
        self, rows: Sequence[int], scores: Sequence[float], grades: Mapping[int, int], others: Sequence[int]
    ) -> list[Hit]:
        """Return the passages in ``rows``; ``others`` are the rows that the other model found."""
        other_rank = {row: rank for rank, row in enumerate(others, start=1)}
        columns = zip(
            rows, self._passages.official_ids(rows), scores, self._passages.texts(rows), strict=False
        )  # there may be more scores
        return [
            Hit(rank, pid, score, text, grades.get(row), other_rank.get(row))
            for rank, (row, pid, score, text) in enumerate(columns, start=1)
        ]

    def _search(self, searcher: Searcher, query: str) -> tuple[list[int], list[float], float]:
        start = time.perf_counter()
        rows, scores = searcher.search(query)
        return rows, scores, time.perf_counter() - start
