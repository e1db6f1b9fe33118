"""Runs that the authors published: tell what their ids are by the judgements, and write them with official ids.

Nothing says what is in these files. The ids of the right kind meet most judged queries, and most of these queries have
a relevant document. Ids of the wrong kind meet some queries too, because official ids are numbers, but hardly ever a
relevant document.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from drhard.archives import unpack_in_place
from drhard.collection import Collection
from drhard.downloads import RemoteRun, download_run
from drhard.errors import InputError
from drhard.files import digest_file, disk_faults, require_file, sole_writer, write_whole_text
from drhard.msmarco import CORPORA, Corpus, find_source_file, parse_number
from drhard.names import OfficialIds
from drhard.provenance import write_stamp
from drhard.qrels import read_relevant_names
from drhard.runs import Ranking, read_rankings

UNPACKED_MOST = 1 << 35  # bytes; a thousand documents for each training query take 11 GB
LAYERS = 2  # of packing, such as a .gz in a zip archive
OFFICIAL, ROWS = "official ids", "row numbers"

Spelled = tuple[str, list[str]]  # the official ids of a query and of its documents, best first
Spell = Callable[[Ranking[str]], Spelled | None]  # None for ids that do not exist


class Fit(NamedTuple):
    """How well a run fits the judgements if its ids are of one kind.

    Attributes:
        judged: queries that have a relevant document.
        covered: those of them that are in the run.
        found: those of them for which the run has a relevant document.
    """

    judged: int
    covered: int
    found: int

    @property
    def is_good(self) -> bool:
        """Whether the run has most of the queries, and a relevant document for most of these."""
        return 2 * self.covered >= self.judged and 2 * self.found >= self.covered

    def __str__(self) -> str:
        return f"{self.covered} of {self.judged} judged queries, {self.found} of them with a relevant document"


@dataclass(frozen=True)
class Split:
    """The queries of a run, and the collection that it ranks.

    Attributes:
        corpus: the format of the collection, which has the prefix of official ids.
        data: the folder of the collection, ``{data_root}/{passage,doc}``.
        mode: the split of the queries.
    """

    corpus: Corpus
    data: Path
    mode: str

    def read_relevant(self) -> dict[str, set[str]]:
        """Return official qid -> official ids of its relevant documents.

        Raises InputError as :func:`drhard.qrels.read_relevant_names`.
        """
        name = self.corpus.modes[self.mode].qrels
        if name is None:
            raise InputError(f"{self.mode}: has no judgements")
        folder = self.data / "dataset"
        path = require_file(find_source_file(folder, name) or folder / name)
        return {qid: set(docids) for qid, docids in read_relevant_names(path).items()}

    def kinds(self) -> dict[str, Spell]:
        """Return for each kind of ids how to spell them officially. Rows need the ids in the ``preprocess`` folder."""
        prefix = self.corpus.pid_prefix
        spells = {OFFICIAL: _officially(prefix)}
        collection = Collection(self.data / "preprocess")
        if collection.has_ids(self.mode):
            spells[ROWS] = _by_rows(collection.official_qids(self.mode), collection.official_pids(prefix))
        return spells


def _officially(prefix: str) -> Spell:
    """Spell official ids, whose documents may lack their prefix."""

    def spell(ranking: Ranking[str]) -> Spelled:
        return ranking.qid, [docid if docid.startswith(prefix) else prefix + docid for docid in ranking.docids]

    return spell


def _by_rows(qids: OfficialIds, pids: OfficialIds) -> Spell:
    """Spell rows."""

    def spell(ranking: Ranking[str]) -> Spelled | None:
        query, rows = parse_number(ranking.qid), [parse_number(docid) for docid in ranking.docids]
        known = [row for row in rows if row is not None and row < len(pids)]
        if query is None or query >= len(qids) or len(known) < len(rows):
            return None
        return qids.take([query])[0], pids.take(known)

    return spell


def fetch_run(remote: RemoteRun, data: Path, target: Path) -> str:
    """Download a published run and write it with official ids.

    Args:
        data: the folder of its collection, ``{data_root}/{passage,doc}``, with the judgements in ``dataset``.
        target: the file to write, ``{mode}.rank.tsv``.

    Returns:
        What its ids were, and how it fits the judgements. Empty if another process was faster.

    Raises:
        InputError: as :func:`drhard.downloads.download_run` or :func:`recognise`; or another process is writing it.
    """
    downloaded = target.with_name(f"{remote.mode}.download")
    with disk_faults(target), sole_writer(target.parent, target):
        if target.exists():
            return ""
        if not downloaded.is_file():  # it is: left by a call that was stopped, or put there by hand
            download_run(remote, downloaded)
        for _ in range(LAYERS):
            unpack_in_place(downloaded, UNPACKED_MOST)
        kind, fit = write_official(downloaded, target, Split(CORPORA[remote.dataset], data, remote.mode), remote.url)
        downloaded.unlink()
    return f"{kind}; {fit}"


def write_official(source: Path, target: Path, split: Split, url: str) -> tuple[str, Fit]:
    """Write a run of unknown ids with official ids, as ``qid pid rank``, and its stamp.

    Args:
        url: where it came from, for the stamp.

    Returns:
        What its ids were, and how it fits the judgements.

    Raises:
        InputError: as :func:`recognise`.
    """
    spells = split.kinds()
    kind, fit = recognise(source, split, spells)
    with write_whole_text(target) as file:
        for qid, docids in _spelled(source, spells[kind]):
            file.writelines(f"{qid}\t{docid}\t{rank}\n" for rank, docid in enumerate(docids, start=1))
        write_stamp(target, {"url": url, "ids": kind, "source": digest_file(source)})
    return kind, fit


def _read(source: Path) -> Iterator[Ranking[str]]:
    try:
        yield from read_rankings(source)
    except InputError as error:
        raise InputError(f"{error}; remove it, or put a run in its place, and run the same command again") from None


def _spelled(source: Path, spell: Spell) -> Iterator[Spelled]:
    for ranking in _read(source):
        spelled = spell(ranking)
        if spelled is None:
            raise InputError(
                f"{source}, line {ranking.lines[0]}: query {ranking.qid} or one of its documents is not a row"
            )
        yield spelled


def recognise(source: Path, split: Split, spells: Mapping[str, Spell]) -> tuple[str, Fit]:
    """Tell the kind of a run's ids: that with which most judged queries have a relevant document.

    Args:
        spells: the kinds that are possible; see :meth:`Split.kinds`.

    Raises:
        InputError: as :func:`drhard.runs.read_rankings`; no kind fits the judgements; or the ids seem to be rows, and
            the ``preprocess`` folder is missing.
    """
    relevant = split.read_relevant()
    counts = {kind: [0, 0] for kind in spells}
    rows = 0  # queries whose ids can be rows
    for ranking in _read(source):
        number = parse_number(ranking.qid)
        rows += number is not None and number < len(relevant)
        for kind, spell in spells.items():
            qid, docids = spell(ranking) or ("", [])
            if qid in relevant:
                counts[kind][0] += 1
                counts[kind][1] += not relevant[qid].isdisjoint(docids)
    fits = {kind: Fit(len(relevant), *count) for kind, count in counts.items()}
    kind, fit = max(fits.items(), key=lambda item: (item[1].found, item[1].covered))
    if fit.is_good:
        return kind, fit
    if ROWS not in spells and 2 * rows >= len(relevant):
        name, root = split.corpus.name, shlex.quote(str(split.data.parent))
        raise InputError(
            f"{source}: seems to have row numbers ({OFFICIAL} would meet {fit}), and {split.data / 'preprocess'} lacks "
            f"the ids of the rows; run 'bash download_data.sh {name} --data_root {root}' and 'python preprocess.py "
            f"--data_type {name} --data_root {root}', then the same command again"
        )
    tried = "; ".join(f"{kind} would meet {fit}" for kind, fit in fits.items())
    raise InputError(
        f"{source}: does not fit the judgements ({tried}), so it is the run of other queries or of another collection; "
        "remove it, or put the right run in its place, and run the same command again"
    )
