"""The authors' runs: fetched, whatever their format and ids, measured as a row's, and compared with one's own run.

What they look like is not known here. So each format and kind of ids is tried, on a collection in which official ids
and rows overlap as MS MARCO's do: the ids of some queries are small, and a passage's id is its row.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

import drhard.downloads
from drhard.archives import unpack_in_place
from drhard.errors import InputError
from drhard.files import read_object
from drhard.ids import write_ids
from drhard.msmarco import CORPORA
from drhard.published_runs import LAYERS, Fit, Split, recognise, write_official
from drhard.tables import all_tables

import documented
import numpy as np
import pytest
from documented import REPRODUCE
from helpers import ROOT, call_script, must_run, refused, run_script

DOCUMENTS, DEPTH = 400, 20
QUERIES = {"dev": 60, "test": 9, "train": 80}
FOLDERS = {"STAR": "star", "ADORE (STAR)": "adore-star"}
HIT = 0.85  # of the queries have their relevant document in the run


@dataclass
class Small:
    """A collection without texts.

    Attributes:
        pids: (documents,) the official id of each row, without prefix.
        qids: by mode, (queries,) the same of queries.
        relevant: by mode, (queries,) the row of the relevant document of each query row.
    """

    data: Path
    name: str
    pids: np.ndarray
    qids: dict[str, np.ndarray] = field(default_factory=dict)
    relevant: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return CORPORA[self.name].pid_prefix

    @property
    def preprocess(self) -> Path:
        return self.data / "preprocess"

    def split(self, mode: str = "dev") -> Split:
        return Split(CORPORA[self.name], self.data, mode)

    def lists(self, mode: str, seed: int = 0) -> list[list[int]]:
        """For each query row the rows of its documents, best first."""
        random = np.random.default_rng(seed)
        lists = []
        for wanted in self.relevant[mode]:
            others = random.choice(DOCUMENTS, DEPTH, replace=False)
            found = [row for row in others.tolist() if row != wanted]
            if random.random() < HIT:
                found.insert(int(random.integers(5)), int(wanted))
            lists.append(found[:DEPTH])
        return lists

    def official(self, mode: str, seed: int = 0, prefix: str | None = None) -> list[tuple[str, list[str]]]:
        prefix = self.prefix if prefix is None else prefix
        lists = zip(self.qids[mode], self.lists(mode, seed), strict=True)
        return [(str(qid), [f"{prefix}{self.pids[row]}" for row in rows]) for qid, rows in lists]

    def rows(self, mode: str, seed: int = 0) -> list[tuple[str, list[str]]]:
        return [(str(query), [str(row) for row in rows]) for query, rows in enumerate(self.lists(mode, seed))]


Lists = list[tuple[str, list[str]]]  # queries and their documents


def make_small(data: Path, name: str) -> Small:
    random = np.random.default_rng(7)
    pids = np.arange(DOCUMENTS) if name == "passage" else random.choice(10**6, DOCUMENTS, replace=False)
    small = Small(data, name, pids)
    for folder in (data / "dataset", small.preprocess):
        folder.mkdir(parents=True)
    write_ids(small.preprocess / "pid2offset.pickle", pids)
    for mode, count in QUERIES.items():
        low = random.choice(count, count // 3, replace=False)  # official ids that are rows as well
        qids = np.concatenate([low, random.choice(np.arange(count, 10**6), count - len(low), replace=False)])
        small.qids[mode] = random.permutation(qids)
        small.relevant[mode] = random.integers(DOCUMENTS, size=count)
        write_ids(small.preprocess / f"{mode}-qid2offset.pickle", small.qids[mode])
        official, rows = [], []
        for query, row in enumerate(small.relevant[mode]):
            official.append(f"{small.qids[mode][query]}\t0\t{small.prefix}{pids[row]}\t1\n")
            rows.append(f"{query}\t0\t{row}\t1\n")
        qrels = CORPORA[name].modes[mode].qrels
        assert qrels
        (data / "dataset" / qrels).write_text("".join(official))
        (small.preprocess / f"{mode}-qrel.tsv").write_text("".join(rows))
    return small


@pytest.fixture(params=["passage", "doc"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Small:
    return make_small(tmp_path / "data" / request.param, request.param)


def three_columns(lists: Lists) -> str:
    return "".join(f"{qid}\t{pid}\t{rank}\n" for qid, pids in lists for rank, pid in enumerate(pids, start=1))


def four_columns(lists: Lists) -> str:
    return "".join(f"{qid} {pid} {rank} {9 - rank / 8}\n" for qid, pids in lists for rank, pid in enumerate(pids, 1))


def trec(lists: Lists) -> str:
    """Six columns, from the worst document to the best."""
    return "".join(
        f"{qid} Q0 {pid} {rank} {-rank} their run\n"
        for qid, pids in lists
        for rank, pid in reversed(list(enumerate(pids, start=1)))
    )


def tar(content: bytes, *others: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        folder = tarfile.TarInfo("runs")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("./runs/dev.rank.tsv", "./runs/._dev.rank.tsv", *others):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.mkdir("runs")
        archive.writestr("__MACOSX/runs/._dev.rank.tsv.gz", b"junk")
        archive.writestr("runs/dev.rank.tsv.gz", gzip.compress(content))
    return packed.getvalue()


FORMS: dict[str, Callable[[Lists], str]] = {"three": three_columns, "four": four_columns, "trec": trec}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "tar.gz": tar,
    "zip of a gz": zipped,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["official ids", "row numbers", "without prefix"])
def test_ids_are_recognised_and_written_officially(small: Small, form: str, kind: str) -> None:
    lists = {
        "official ids": small.official("dev"),
        "row numbers": small.rows("dev"),
        "without prefix": small.official("dev", prefix=""),
    }[kind]
    source, target = small.data / "source", small.data / "dev.rank.tsv"
    source.write_text(FORMS[form](lists))
    found, fit = write_official(source, target, small.split(), "https://a.org")
    assert found == ("row numbers" if kind == "row numbers" else "official ids")
    assert (fit.judged, fit.covered) == (60, 60) and 40 < fit.found < 60
    assert target.read_text() == three_columns(small.official("dev"))
    stamp = read_object(target.with_name("dev.rank.tsv.json"), {"url": str, "ids": str, "source": str})
    assert (stamp["url"], stamp["ids"]) == ("https://a.org", found)


def test_queries_that_are_not_judged_are_kept(small: Small) -> None:
    lists = [*small.official("test"), ("4711000", [f"{small.prefix}{small.pids[0]}"])]
    source, target = small.data / "source", small.data / "test.rank.tsv"
    source.write_text(three_columns(lists))
    assert write_official(source, target, small.split("test"), "")[1].covered == 9
    assert target.read_text() == three_columns(lists)


def test_small_ids_are_told_by_the_relevant_documents(small: Small) -> None:
    """All official ids of the queries are rows too, in another order: each kind covers all queries."""
    order = np.random.default_rng(1).permutation(60)
    small.qids["dev"] = order
    write_ids(small.preprocess / "dev-qid2offset.pickle", order)
    qrels = CORPORA[small.name].modes["dev"].qrels
    assert qrels
    lines = [
        f"{order[query]}\t0\t{small.prefix}{small.pids[row]}\t1\n" for query, row in enumerate(small.relevant["dev"])
    ]
    (small.data / "dataset" / qrels).write_text("".join(lines))
    source, spells = small.data / "source", small.split().kinds()
    for kind, lists in (("official ids", small.official("dev")), ("row numbers", small.rows("dev"))):
        source.write_text(three_columns(lists))
        found, fit = recognise(source, small.split(), spells)
        assert found == kind and fit.covered == 60
    shutil.rmtree(small.preprocess)
    source.write_text(three_columns(small.official("dev")))
    assert recognise(source, small.split(), small.split().kinds())[0] == "official ids"


def test_rows_without_their_ids_are_one_sentence(small: Small) -> None:
    shutil.rmtree(small.preprocess)
    source = small.data / "source"
    source.write_text(three_columns(small.rows("dev")))
    way_out = (
        f"run 'bash download_data.sh {small.name} --data_root .*' and 'python preprocess.py --data_type {small.name}"
    )
    with pytest.raises(InputError, match=f"source: seems to have row numbers .*preprocess lacks the ids.*; {way_out}"):
        write_official(source, small.data / "dev.rank.tsv", small.split(), "")
    assert not (small.data / "dev.rank.tsv").exists()


@pytest.mark.parametrize("preprocessed", [True, False])
def test_runs_of_something_else_are_refused(small: Small, preprocessed: bool) -> None:
    if not preprocessed:
        shutil.rmtree(small.preprocess)
    source = small.data / "source"
    source.write_text(three_columns(small.official("train")))
    with pytest.raises(
        InputError, match="source: does not fit the judgements .official ids would meet .* of 60 judged"
    ):
        recognise(source, small.split(), small.split().kinds())


def test_a_row_that_is_none_is_refused(small: Small) -> None:
    source = small.data / "source"
    source.write_text(three_columns([*small.rows("dev")[:-1], ("59", [str(DOCUMENTS)])]))
    with pytest.raises(InputError, match="source, line .*: query 59 or one of its documents is not a row"):
        write_official(source, small.data / "dev.rank.tsv", small.split(), "")


@pytest.mark.parametrize(
    "fit, good",
    [((10, 5, 3), True), ((10, 5, 2), False), ((10, 4, 4), False), ((7, 7, 7), True), ((10, 0, 0), False)],
)
def test_most_queries_and_most_relevant_documents(fit: tuple[int, int, int], good: bool) -> None:
    assert Fit(*fit).is_good is good


# By download_data.py: gdown is played by a function; the judgements are there


def manifest(work: Path) -> Path:
    """The project's, but for what a test must not fetch."""
    content = json.loads((ROOT / "data" / "downloads.json").read_text())
    path = work / "manifest.json"
    path.write_text(json.dumps(content | {"checkpoints": []}))
    return path


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What Google Drive has by its ids."""
    content: dict[str, bytes] = {}

    class Gdown:
        @staticmethod
        def download(id: str, output: str, resume: bool) -> None:
            assert resume
            Path(output).write_bytes(content.pop(id))

    monkeypatch.setattr(drhard.downloads, "import_gdown", lambda: Gdown)
    return content


def ids_of(name: str) -> dict[tuple[str, str], str]:
    runs = json.loads((ROOT / "data" / "downloads.json").read_text())["runs"]
    return {
        (run["folder"].rpartition("/")[2], run["mode"]): run["drive_file"] for run in runs if run["dataset"] == name
    }


def put_on(drive: dict[str, bytes], small: Small, modes: tuple[str, ...] = ("dev", "test"), rows: bool = False) -> None:
    for seed, folder in enumerate(FOLDERS.values()):
        for mode in modes:
            lists = small.rows(mode, seed) if rows else small.official(mode, seed)
            drive[ids_of(small.name)[folder, mode]] = three_columns(lists).encode()


def fetch(small: Small, *flags: str) -> str:
    work = small.data.parent.parent
    return must_run("download_data.py", small.name, "--manifest", manifest(work), *flags, cwd=work)


@pytest.mark.parametrize("rows", [False, True])
def test_runs_are_fetched_once_and_need_no_collection(small: Small, drive: dict[str, bytes], rows: bool) -> None:
    put_on(drive, small, rows=rows)
    if not rows:
        shutil.rmtree(small.preprocess)
    kind = "row numbers" if rows else "official ids"
    printed = fetch(small, "--runs")
    assert printed.count(f"; it had {kind}; 60 of 60 judged queries, ") == 2
    assert printed.count(f"; it had {kind}; 9 of 9 judged queries, ") == 2
    assert not drive
    for seed, folder in enumerate(FOLDERS.values()):
        found = sorted(path.name for path in (small.data / "published_runs" / folder).iterdir())
        assert found == ["dev.rank.tsv", "dev.rank.tsv.json", "test.rank.tsv", "test.rank.tsv.json"]
        for mode in ("dev", "test"):
            path = small.data / "published_runs" / folder / f"{mode}.rank.tsv"
            assert path.read_text() == three_columns(small.official(mode, seed))
    assert fetch(small, "--runs").count("Already exists: ") == 6  # with the judgements


def test_runs_of_training_queries_are_fetched_by_a_flag(small: Small, drive: dict[str, bytes]) -> None:
    put_on(drive, small, ("train",))
    fetch(small, "--train_runs")
    found = {str(path.relative_to(small.data)) for path in small.data.rglob("*.rank.tsv")}
    assert found == {f"published_runs/{folder}/train.rank.tsv" for folder in FOLDERS.values()}


@pytest.mark.parametrize("packing", PACKED)
def test_packed_runs_are_unpacked(small: Small, drive: dict[str, bytes], packing: str) -> None:
    put_on(drive, small)
    packed = {id_: PACKED[packing](content) for id_, content in drive.items()}
    drive.update(packed)
    fetch(small, "--runs")
    path = small.data / "published_runs" / "star" / "dev.rank.tsv"
    assert path.read_text() == three_columns(small.official("dev"))
    assert not list(small.data.rglob("*.download*"))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (
            b"<!DOCTYPE html>\n<html>sign in</html>\n",
            "dev.download, line 1: expected 'qid <tab> pid <tab> rank', found 2",
        ),
        (b"", "dev.download: the run is empty; remove it, or put a run in its place"),
        (b"1,2,3\n", "dev.download, line 1: expected"),
        (b"1\t2\t0\n", "dev.download, line 1: the rank '0' is not 1, 2, 3"),
        (b"1\t0\t2\t3\t4\n", "dev.download, line 1: expected 'qid Q0 docid rank score tag', found 5 fields"),
        (b"1\t2\t1\n1\t2\t2\n", "dev.download, line 2: query 1 has document 2 again"),
        (b'{"1": [2, 3]}\n', "dev.download, line 1: "),
        (b"\x93NUMPY\x01\x00", "dev.download, line 1: not UTF-8 text"),
        (gzip.compress(b"1\t2\t1\n" * 99, mtime=0)[:-9], "dev.download: cannot be unpacked"),
        (
            tar(b"1\t2\t1\n", "runs/test.rank.tsv"),
            "dev.download: holds 2 files; put the one that is wanted in its place",
        ),
        (b"1\t2\t1\n", "dev.download: does not fit the judgements"),
    ],
)
def test_what_is_no_run_is_one_sentence(
    tmp_path: Path, drive: dict[str, bytes], content: bytes, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_small(tmp_path / "data" / "passage", "passage")
    put_on(drive, small)
    drive[ids_of("passage")["star", "dev"]] = content
    arguments = ("passage", "--runs", "--manifest", manifest(tmp_path), "--data_root", tmp_path / "data")
    assert sentence in refused("download_data.py", *arguments, capsys=capsys)
    downloaded = small.data / "published_runs" / "star" / "dev.download"
    downloaded.write_text(three_columns(small.official("dev")))  # by hand
    call_script("download_data.py", *arguments)
    assert (small.data / "published_runs" / "star" / "dev.rank.tsv").read_text() == downloaded_text(small)


def test_archives_of_what_is_no_file_and_bombs(tmp_path: Path) -> None:
    path = tmp_path / "dev.download"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("dev.rank.tsv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match="dev.download: cannot be unpacked .dev.rank.tsv is not a plain file.; remove"):
        unpack_in_place(path, 10**6)
    for packed in (gzip.compress(bytes(10**7)), tar(bytes(10**7)), zipped(bytes(10**7))):
        path.write_bytes(packed)
        with pytest.raises(InputError, match="dev.download: unpacks to more than 1 MB"):
            for _ in range(LAYERS):
                unpack_in_place(path, 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["dev.download"]


def downloaded_text(small: Small) -> str:
    return three_columns(small.official("dev"))


def test_rows_are_converted_once_their_ids_are_there(small: Small, drive: dict[str, bytes]) -> None:
    put_on(drive, small, rows=True)
    ids = small.preprocess.rename(small.data / "elsewhere")
    with pytest.raises(SystemExit):
        fetch(small, "--runs")
    assert len(drive) == 3  # the first one was fetched, and is kept
    ids.rename(small.preprocess)
    fetch(small, "--runs")
    assert (small.data / "published_runs" / "star" / "dev.rank.tsv").read_text() == downloaded_text(small)


def test_a_link_that_is_dead_names_the_place_for_a_browser(
    tmp_path: Path, drive: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    make_small(tmp_path / "data" / "passage", "passage")
    arguments = ("passage", "--runs", "--manifest", manifest(tmp_path), "--data_root", tmp_path / "data")
    error = refused("download_data.py", *arguments, capsys=capsys)
    assert re.search(
        r"/file/d/\S+: gdown cannot download it .* browser as \S+/published_runs/star/dev.download$", error
    )


# As rows of the tables


@pytest.mark.parametrize("name", FOLDERS)
def test_a_row_is_measured_from_the_published_run(
    small: Small, drive: dict[str, bytes], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the values that msmarco_eval.py and trec_eval.py print."""
    put_on(drive, small)
    shutil.rmtree(small.preprocess)
    root = small.data.parent
    for (folder, mode), id_ in ids_of(small.name).items():
        if id_ in drive:  # as a browser would
            path = small.data / "published_runs" / folder / f"{mode}.download"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drive[id_])
    result = run_script("reproduce.py", "run", f"{small.name}:{name}", "--from", "run", "--data_root", root)
    assert result.returncode == 0, result.stderr
    assert f"report {small.name} --data_root" in result.stdout

    report = root / "report"
    call_script("reproduce.py", "report", small.name, "--data_root", root, "--output_dir", report)
    assert f"{name}, published run: dev run " in capsys.readouterr().out.replace(", run,", ",")
    [table] = json.loads((report / "report.json").read_text())["tables"]
    [row] = [row for row in table["rows"] if row["id"] == f"{small.name}:{name}" and row["trials"]]
    assert row["origin"] == "run"
    values = {key: value["measured"] for key, value in row["values"].items()}
    run = small.data / "published_runs" / FOLDERS[name]
    dev, test = (small.data / "dataset" / str(CORPORA[small.name].modes[mode].qrels) for mode in ("dev", "test"))
    cut = ["doc"] if small.name == "doc" else []
    printed = must_run("msmarco_eval.py", dev, run / "dev.rank.tsv", *cut, cwd=root)
    assert f": {values['mrr']}\n" in printed or values["mrr"] == pytest.approx(float(printed.split(": ")[1].split()[0]))
    assert f"R@100  \tall\t{values['r100']:.4f}" in must_run("trec_eval.py", dev, run / "dev.rank.tsv", cwd=root)
    assert f"nDCG@10\tall\t{values['ndcg10']:.4f}" in must_run("trec_eval.py", test, run / "test.rank.tsv", cwd=root)
    assert row["values"]["mrr"]["expected"] == all_tables()[small.name].rows[name].expected["mrr"]


def test_a_row_without_published_runs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "passage:Rand Neg has no published run; omit --from" in refused(
        "reproduce.py", "show", "passage:Rand Neg", "--from", "run", capsys=capsys
    )


def test_commands_of_the_page_run_on_small_runs(tmp_path: Path, drive: dict[str, bytes]) -> None:
    """Those of docs/reproduce.md: fetch, measure, convert one's own run, and compare the two query by query."""
    small = make_small(tmp_path / "data" / "passage", "passage")
    put_on(drive, small)
    for seed, folder in enumerate(FOLDERS.values()):
        own = small.data / "evaluate" / folder / "dev.rank.tsv"
        own.parent.mkdir(parents=True)
        own.write_text(three_columns(small.rows("dev", seed + 5)))
    fetch(small, "--runs")
    commands = [command for command in documented.in_document(REPRODUCE) if command.script in documented.SCRIPTS]
    assert [command.script for command in commands] == [
        "msmarco_eval.py",
        "trec_eval.py",
        "cvt_back.py",
        "trec_eval.py",
    ]
    printed = [must_run(str(command.script), *command.words[2:], cwd=tmp_path) for command in commands]
    assert "MRR @10: 0." in printed[0]
    assert "against others over 60 queries" in printed[-1] and "published_runs/adore-star/dev.rank.tsv" in printed[-1]
    with chdir(tmp_path):
        for command in documented.in_document(REPRODUCE):
            if command.words[:2] == ("bash", "download_data.sh"):
                assert "--runs" in command.words
