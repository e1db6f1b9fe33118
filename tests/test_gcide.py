"""The reverse dictionary: its build from made-up dictionaries, its records, its settings, and its documented table."""

import gzip
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.measured import find_measured, read_committed
from drhard.model_folder import save_encoder
from drhard.recipes import SCRATCH
from drhard.report import measure_table
from drhard.tables import all_tables
from drhard.tables_gcide import GCIDE

import pytest
from documented import README, RESULTS
from helpers import ROOT, load_script, must_run, refused, tiny_model

BUILD, REPRODUCE, CHOOSE = "data/gcide/make_gcide.py", "reproduce.py", "data/choose.py"
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
ENTRIES = {  # of a dictionary in GCIDE's form
    "Brindle": 'Brindle \\Brin"dle\\, n. [OE. brinded.]\n'
    "   A streaked colour of [=o]ld animals. --Milton.\n   [1913 Webster]\n",
    "Cask": "Cask \\Cask\\ (k[.a]sk), n.\n   A wooden vessel that holds wine or beer.\n   [1913 Webster]\n",
    "Dawdle": 'Dawdle \\Daw"dle\\, v. i.\n   To waste hours in trifling ways.\n   [1913 Webster]\n',
    "Ewer": 'Ewer \\Ew"er\\, n.\n   A wide jug for washing water at table.\n   [1913 Webster]\n',
    "Fane": "Fane \\Fane\\, n.\n   (taken from there) a place of worship.\n   [WordNet 1.5]\n",
    "Glum": "Glum \\Glum\\, a.\n   See {Gloomy} of this very dictionary.\n   [1913 Webster]\n",
}
SYNSETS = {  # by file of WordNet: its words, and its gloss
    "data.noun": {
        "brindle": "a coat with darker stripes",
        "cask": "a barrel of oak staves",
        "ewer": "a wide jug for washing water at sea",  # shares six words in a row with its entry
        "fane": "a house for worshippers",  # its entry comes from WordNet
    },
    "data.verb": {"dawdle": "be slow on purpose"},
    "data.adj": {"glum": "showing a low mood"},  # its entry only refers to another
    "data.adv": {},
}


def number(value: int) -> str:
    return (number(value // 64) if value >= 64 else "") + DIGITS[value % 64]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folders of two dictionaries; the script's manifest names their digests, and its splits are small."""
    gcide, wordnet = tmp_path / "gcide", tmp_path / "wordnet"
    gcide.mkdir()
    wordnet.mkdir()
    index, text = ["00-database-short\tA\tB"], b""
    for head, entry in ENTRIES.items():
        index.append(f"{head}\t{number(len(text))}\t{number(len(entry.encode()))}")
        text += entry.encode()
    (gcide / "gcide.index").write_text("\n".join(index) + "\n")
    (gcide / "gcide.dict.dz").write_bytes(gzip.compress(text, mtime=0))
    for name, synsets in SYNSETS.items():
        lines = [
            f'{place:08} 06 n 01 {word} 0 000 | {gloss}; "an example"  \n'
            for place, (word, gloss) in enumerate(synsets.items())
        ]
        (wordnet / name).write_text("  1 the licence\n" + "".join(lines))
    script = load_script(BUILD)
    with script.open_source("gcide", gcide) as one, script.open_source("wordnet", wordnet) as other:
        digests = script.digest_sources(one, other)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"sources": digests, "data": {}}))
    monkeypatch.setattr(script, "MANIFEST", manifest)
    monkeypatch.setattr(script, "SIZES", {"dev": 1, "test": 1, "held": 1})
    return gcide, wordnet


def build(sources: tuple[Path, Path], output: Path, *more: object) -> dict[str, str]:
    gcide, wordnet = sources
    must_run(BUILD, "--gcide", gcide, "--wordnet", wordnet, "--output_dir", output, *more, cwd=output.parent)
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(output.iterdir())}


def test_build_keeps_the_definitions_that_can_be_found_and_not_copied(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    files = build(sources, tmp_path / "whole")
    passages = dict(line.split("\t") for line in files["collection.tsv"].splitlines())
    assert set(passages.values()) == {
        "Brindle, n. A streaked colour of old animals. --Milton.",
        "Cask, n. A wooden vessel that holds wine or beer.",
        "Dawdle, v. i. To waste hours in trifling ways.",
        "Ewer, n. A wide jug for washing water at table.",
        "Glum, a. See Gloomy of this very dictionary.",
    }
    found = {}
    for mode, qrels in (
        ("train", "qrels.train.tsv"),
        ("dev.small", "qrels.dev.small.tsv"),
        ("test2019", "2019qrels-pass.txt"),
    ):
        name = "msmarco-test2019-queries.tsv" if mode == "test2019" else f"queries.{mode}.tsv"
        queries = dict(line.split("\t") for line in files[name].splitlines())
        assert len(queries) == 1
        for line in files[qrels].splitlines():
            qid, _, pid, _ = line.split()
            found[queries[qid]] = passages[pid].split(",")[0]
    assert found == {
        "a coat with darker stripes": "Brindle",
        "a barrel of oak staves": "Cask",
        "be slow on purpose": "Dawdle",
    }


def test_build_is_repeatable_from_packages_too(sources: tuple[Path, Path], tmp_path: Path) -> None:
    packages = []
    for folder in sources:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:xz") as archive:
            archive.add(folder, arcname="./usr/share/x")
        header = f"{'data.tar.xz':16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data.getvalue()):<10}`\n"
        packages.append(tmp_path / f"{folder.name}.deb")
        packages[-1].write_bytes(b"!<arch>\n" + header.encode() + data.getvalue())
    assert build((packages[0], packages[1]), tmp_path / "again") == build(sources, tmp_path / "whole")


def test_held_out_data_has_no_test_and_takes_dev_from_training(sources: tuple[Path, Path], tmp_path: Path) -> None:
    whole, held_out = build(sources, tmp_path / "whole"), build(sources, tmp_path / "held-out", "--held_out")
    assert held_out["queries.dev.small.tsv"] == whole["queries.train.tsv"]
    assert "2019qrels-pass.txt" not in held_out


def test_other_dictionaries_are_refused(
    sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gcide, wordnet = sources
    (wordnet / "data.adv").write_text("  2 another licence\n")
    flags = ("--gcide", gcide, "--wordnet", wordnet, "--output_dir", tmp_path / "out")
    assert "data.adv: its SHA-256 is" in refused(BUILD, *flags, capsys=capsys)
    shutil.rmtree(gcide)
    assert "is neither a folder nor a .deb file" in refused(BUILD, *flags, capsys=capsys)


# Records ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the project's place, without runs."""
    monkeypatch.setattr(load_script(REPRODUCE), "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_committed_records_belong_to_rows() -> None:
    trials = [trial for table in all_tables().values() for row in table.rows.values() for trial in row.trials[SCRATCH]]
    for records in {table.records for table in all_tables().values()} - {None}:
        assert set(read_committed(records)) <= {str(trial.record) for trial in trials}


def test_own_runs_are_measured_and_take_the_place_of_the_committed_record(project: Path) -> None:
    table = all_tables()["gcide"]
    [trial] = table.rows["BM25"].trials[SCRATCH]
    committed = find_measured(table, trial, {})
    assert committed is not None and committed.mean("mrr") == pytest.approx(0.2571, abs=5e-5)
    for mode, run in trial.runs.items():
        for path in (table.qrels[mode], run):
            path.parent.mkdir(parents=True, exist_ok=True)
        table.qrels[mode].write_text("0\t0\t7\t1\n")
        run.write_text("0\t5\t1\n0\t7\t2\n0\t8\t3\n0\t9\t4\n")
    assert "Wrote" in must_run(REPRODUCE, "measure", "gcide:BM25", cwd=project)
    assert trial.record is not None and trial.record.exists()
    own = find_measured(table, trial, {})
    assert own is not None and own.mean("mrr") == 0.5 and own.mean("r100") == 1
    assert own.ranks is not None and own.ranks.tolist() == [2]
    assert own.tops == {"0": ["5", "7", "8"]}


def test_record_keeps_the_first_documents_for_the_first_seed_only(project: Path) -> None:
    table = all_tables()["gcide"]
    trials = table.rows["In-Batch Neg"].trials[SCRATCH]
    for mode in ("dev", "test"):
        for trial in trials[:2]:
            assert trial.model is not None
            trial.runs[mode].parent.mkdir(parents=True, exist_ok=True)
            trial.runs[mode].write_text("3\t5\t1\n2\t7\t1\n")
            save_encoder(tiny_model(), trial.model, trial.model)
        table.qrels[mode].parent.mkdir(parents=True, exist_ok=True)
        table.qrels[mode].write_text("2\t0\t7\t1\n3\t0\t7\t1\n")
    for trial, tops in zip(trials[:2], ({"2": ["7"], "3": ["5"]}, None), strict=True):
        must_run(REPRODUCE, "measure", "gcide:In-Batch Neg", "--seed", str(trial.seed), cwd=project)
        found = find_measured(table, trial, {})
        assert found is not None and found.ranks is not None
        assert found.ranks.tolist() == [1, 0]
        assert found.tops == tops


def test_record_with_damaged_ranks_is_refused(project: Path) -> None:
    table = all_tables()["gcide"]
    [trial] = table.rows["BM25"].trials[SCRATCH]
    assert trial.record is not None
    trial.record.parent.mkdir(parents=True)
    queries = {key: [1.0, 0.0] for key in table.measures}
    content = {"runs": {}, "queries": queries, "curves": {}}
    trial.record.write_text(json.dumps(content))  # as earlier versions wrote it
    found = find_measured(table, trial, {})
    assert found is not None and found.ranks is None and found.tops is None
    for field, value in (("ranks", [1]), ("ranks", 1), ("tops", {"0": ["1"]}), ("tops", [])):
        trial.record.write_text(json.dumps(content | {field: value}))
        with pytest.raises(InputError, match=field):
            find_measured(table, trial, {})


def test_what_cannot_be_measured_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, reason in {
        ("measure", "gcide:Hard only", "--seed", "42"): "run the row first",  # the committed record does not count
        ("measure", "gcide:STAR"): "has no training, or several, with the seed None",
        ("measure", "sample:STAR", "--seed", "42"): "keeps no records",
        ("run", "gcide-small:STAR"): "data/sample/pretrain.py --gcide",
    }.items():
        assert reason in refused(REPRODUCE, *words, capsys=capsys)


@pytest.mark.parametrize("line", ["{", "[]", '{"seed": 42}'])
def test_damaged_records_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(Exception, match="records.jsonl, line 1"):
        read_committed(path)


def test_settings_are_those_of_the_records(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = GCIDE.read_settings()
    shutil.copytree(ROOT / "data" / "gcide", project / "data" / "gcide")
    monkeypatch.setattr("drhard.claims.DATA", project / "data")
    assert "—" not in must_run(CHOOSE, "gcide", cwd=project)
    assert GCIDE.read_settings() == committed


# Committed and documented results ---------------------------------------------------------------------------

REPORT = json.loads((ROOT / "data" / "gcide" / "results" / "report.json").read_text(encoding="utf-8"))
REPORTED = {table["name"]: table for table in REPORT["tables"]}
each_reported = pytest.mark.parametrize("name", REPORTED)


def section() -> str:
    """What docs/results.md says about the reverse dictionary."""
    sections = re.split("^(?=## )", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [found] = [section for section in sections if section.startswith("## A reverse dictionary\n")]
    return found


@each_reported
@pytest.mark.usefixtures("project")
def test_committed_report_is_that_of_the_records(name: str) -> None:
    rows = measure_table(all_tables()[name], {})
    assert [row["name"] for row in REPORTED[name]["rows"]] == [row.name for row in rows]
    for reported, row in zip(REPORTED[name]["rows"], rows, strict=True):
        assert row.whole
        for key, value in reported["values"].items():
            mean, half = row.mean(key)
            assert value["measured"] == pytest.approx(mean)
            assert value["half_width"] is None or value["half_width"] == pytest.approx(half)
        digests = [trial.runs["dev"]["sha256"] for trial in row.trials]
        assert [trial["runs"]["dev"]["sha256"] for trial in reported["trials"]] == digests


@pytest.mark.parametrize("name", ["gcide", "gcide-small"])
def test_documented_table_is_that_of_the_report(name: str) -> None:
    documented = section()
    for row in REPORTED[name]["rows"]:
        cells = []
        for value in row["values"].values():
            half = "" if value["half_width"] is None else f" ± {value['half_width']:.3f}"
            cells.append(f"{value['measured']:.3f}{half}")
        seeds = "—" if row["trials"][0]["seed"] is None else str(len(row["trials"]))
        assert f"| {row['name']} | {' | '.join(cells)} | {seeds} |\n" in documented
    for asked in REPORTED[name]["questions"]:
        result = asked["measures"]["mrr"]
        evidence = f"{result['difference']:+.3f} ({result['low']:+.3f} to {result['high']:+.3f}), p "
        line = f"| {asked['question']} | **{asked['answer']}** | {evidence}"
        [found] = [one for one in documented.splitlines() if one.startswith(line)]
        assert f" | {result['least_found']:.3f} | " in found


@pytest.mark.parametrize("trend", REPORT["trends"], ids=lambda trend: trend["axis"])
def test_documented_curves_are_those_of_the_report(trend: dict[str, Any]) -> None:
    for (at, *star), (_, *in_batch), (_, *difference) in zip(
        *(trend["rows"][name] for name in ("STAR", "In-Batch Neg")), trend["difference"], strict=True
    ):
        cells = [f"{mean:.3f} ± {half:.3f}" for mean, half in (star, in_batch)]
        cells.append(f"{difference[0]:+.3f} ± {difference[1]:.3f}")
        assert f"\n| {at:,} | {' | '.join(cells)} | " in section()


def test_readme_has_the_values_and_the_answers() -> None:
    text = README.read_text(encoding="utf-8").partition("\n## Results\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    values, claims = ([line for line in lines[2:] if len(line) == count] for count in (4, 3))
    published = all_tables()["passage"].rows
    for name, *ours, paper in values:
        for table, start, cell in zip(("gcide", "gcide-small"), ("MiniLM", "Warm-up"), ours, strict=True):
            wanted = start if name == "start" else name
            [value] = [row["values"]["mrr"] for row in REPORTED[table]["rows"] if row["name"] == wanted]
            half = "" if value["half_width"] is None else f" ± {value['half_width']:.3f}"
            assert cell == f"{value['measured']:.3f}{half}"
        assert paper == (f"{published[name].expected['mrr']:.3f}" if name in published else "")
    names = {"ADORE": "ADORE (start)", "hard only": "Hard only", "compressed": "ADORE (STAR), compressed"}
    assert len(claims) == 9 + 2  # with the head of the table
    for claim, *ours in claims[2:]:
        row, than = (names.get(name, name) for name in re.split(" [>≥] ", claim))
        for table, start, cell in zip(("gcide", "gcide-small"), ("MiniLM", "Warm-up"), ours, strict=True):
            pair = [start if name == "start" else name.replace("(start)", f"({start})") for name in (row, than)]
            [asked] = [one for one in REPORTED[table]["questions"] if [one["row"], one["than"]] == pair]
            result = asked["measures"]["mrr"]
            half = result["high"] - result["difference"]
            assert cell == f"**{asked['answer']}**, {result['difference']:+.3f} ± {half:.3f}"


def test_readme_of_the_data_has_its_counts() -> None:
    manifest = json.loads((ROOT / "data" / "gcide" / "manifest.json").read_text(encoding="utf-8"))
    assert "111,672" in (ROOT / "data" / "gcide" / "README.md").read_text(encoding="utf-8")
    assert "whole, 111672 passages" in manifest["data"]
