"""Rows, their commands, and the report: expected beside measured, tests, digests, one page that needs nothing else."""

import hashlib
import importlib.util
import json
import math
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

from drhard.encoder import digest_weights, save_encoder
from drhard.errors import InputError
from drhard.recipes import CHECKPOINT, SCRATCH, find_rows, read_tables
from drhard.rendering import render_html, render_markdown, render_text
from drhard.report import make_report

import numpy as np
import pytest
from helpers import tiny_model
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

PROJECT = Path(__file__).resolve().parents[1]
TABLES = PROJECT / "data" / "tables.yaml"

# The published tables: MRR@10 (doc: 100), R@100, nDCG@10. R@100 of doc STAR as two later papers quote it.
PUBLISHED = {
    "passage:In-Batch Neg": (0.264, 0.837, 0.583),
    "passage:Rand-Neg": (0.301, 0.853, 0.612),
    "passage:STAR": (0.3404237731386721, 0.867, 0.642),
    "passage:ADORE (In-Batch Neg)": (0.316, 0.860, 0.658),
    "passage:ADORE (Rand-Neg)": (0.326, 0.865, 0.661),
    "passage:ADORE (STAR)": (0.34660697230181425, 0.876, 0.683),
    "doc:In-Batch Neg": (0.320, 0.864, 0.544),
    "doc:Rand-Neg": (0.330, 0.859, 0.572),
    "doc:STAR": (0.3903422772218344, 0.913, 0.605),
    "doc:ADORE (In-Batch Neg)": (0.362, 0.884, 0.580),
    "doc:ADORE (Rand-Neg)": (0.361, 0.885, 0.585),
    "doc:ADORE (STAR)": (0.4049777020859768, 0.919, 0.628),
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_steps() -> list[tuple[str, str]]:
    """(id of the row, command) of every row, from both origins, each command once."""
    found = {}
    for table in read_tables(TABLES).values():
        for row in table.rows.values():
            for origin in row.trials:
                for step in row.steps(origin):
                    found.setdefault(step.command, row.id)
    return [(row, command) for command, row in found.items()]


def test_all_published_rows_are_there_with_their_values() -> None:
    tables = read_tables(TABLES)
    rows = {row.id: tuple(row.expected.values()) for name in ("passage", "doc") for row in tables[name].rows.values()}
    assert rows == PUBLISHED
    assert all(
        set(row.trials) == {CHECKPOINT, SCRATCH} for name in ("passage", "doc") for row in find_rows(tables, name)
    )
    names = {"BM25", "Warm-up", "In-Batch Neg", "Rand Neg", "Hard only", "STAR"}
    names |= {f"ADORE ({base})" for base in ("In-Batch Neg", "Rand Neg", "STAR")}
    assert names <= set(tables["sample"].rows)
    for question in tables["sample"].questions:
        assert {question.row, question.than} <= set(tables["sample"].rows)


@pytest.mark.parametrize("row, command", all_steps(), ids=[command[:60] for _, command in all_steps()])
def test_every_command_is_one_that_its_script_takes(row: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "{" not in command and "}" not in command
    for part in command.split("&&"):
        words = shlex.split(part)
        if words[0].startswith("CUDA_VISIBLE_DEVICES="):
            words = words[1:]
        if words[0] != "python":
            assert words[0] in ("bash", "mkdir", "cp", "mv", "rm")
            continue
        script, arguments = PROJECT / words[1], words[2:]
        module = load(script)
        if script == PROJECT / "star" / "train.py":
            parser = module.HfArgumentParser((module.DataArguments, module.StaticTrainingArguments))
            data_args, args = parser.parse_args_into_dataclasses(arguments)  # exits for an unknown flag
            assert args.do_train
            assert (data_args.hardneg_path is not None) == (data_args.negatives in ("star", "hard"))
        else:
            monkeypatch.setattr(sys, "argv", [str(script), *arguments])
            module.parse_arguments()


def test_steps_come_after_what_they_read() -> None:
    """A file in the data root that a command reads was made by an earlier command of the row, or by the first ones."""
    reading = ("--hardneg_path", "--init_path", "--model_dir", "--pembed_path", "--dmemmap_path", "--preprocess_dir")
    for table in read_tables(TABLES).values():
        for row in table.rows.values():
            for origin in row.trials:
                made: set[str] = set()
                for step in row.steps(origin):
                    words = shlex.split(step.command)
                    for flag, value in zip(words, words[1:], strict=False):
                        if flag in reading and "/" in value:
                            checkpoint = origin == CHECKPOINT and "trained_models" in value
                            assert checkpoint or any(path.startswith(value) or value in path for path in made), (
                                f"{row.id}: {step.command} reads {value}"
                            )
                    made.add(str(step.makes))
                    made.add(str(step.makes).replace(f"{step.makes.name}", "passages.memmap"))


TINY = """
steps:
  tiny:
    one: {makes: "{root}/one", command: "mkdir -p {root} && echo {seed} >> {root}/one"}
    two: {makes: "{root}/two-{seed}", command: "cat {root}/one > {root}/two-{seed}"}
    bad: {makes: "{root}/bad", command: "exit 3"}
    idle: {makes: "{root}/idle", command: "true"}
tables:
  tiny:
    title: Tiny
    source: nowhere
    steps: tiny
    root: work
    seeds: [1, 2]
    origins: {scratch: {work: "{root}"}}
    values: {base: x}
    measures:
      mrr: {name: MRR@10, mode: dev, measure: RR@10}
      ndcg10: {name: nDCG@10, mode: test, measure: nDCG@10}
    gains: {row: A, than: B}
    tolerance: {ok: 0.0005, close: 0.003}
    qrels: "{root}/{mode}-qrel.tsv"
    rows:
      A: {values: {}, run: "{root}/A-{seed}/{mode}.rank.tsv", model: "{root}/A-{seed}", scratch: [one, two],
          expected: {mrr: MRR_A}}
      B: {values: {}, run: "{root}/B-{seed}/{mode}.rank.tsv", scratch: [one, bad]}
      C: {values: {}, run: "{root}/C/{mode}.rank.tsv", scratch: [idle], seeds: []}
    questions:
      - {question: "Is A better than B?", row: A, than: B}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a small file of tables, in place of this one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tables.yaml").write_text(TINY.replace("MRR_A", "0.5"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reproduce(project: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run reproduce.py's main in this process; return its exit code."""
    script = load(PROJECT / "reproduce.py")
    monkeypatch.setattr(script, "PROJECT", project)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    try:
        script.main()
    except SystemExit as end:
        return end.code
    return 0


def test_list_and_show(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert reproduce(project, monkeypatch, "list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["tiny:A", "tiny:B", "tiny:C"]
    assert reproduce(project, monkeypatch, "show", "tiny:A") == 0
    assert capsys.readouterr().out.splitlines() == [  # a step of all seeds is there once, as first mentioned
        "mkdir -p work && echo 1 >> work/one",
        "cat work/one > work/two-1",
        "cat work/one > work/two-2",
    ]


def test_run_makes_what_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reproduce(project, monkeypatch, "run", "tiny:A", "--dry_run") == 0
    assert not (project / "work").exists()
    assert reproduce(project, monkeypatch, "run", "tiny:A") == 0
    assert (project / "work" / "two-2").read_text() == "1\n"
    (project / "work" / "two-1").unlink()
    assert reproduce(project, monkeypatch, "run", "tiny:A") == 0
    assert (project / "work" / "two-1").read_text() == "1\n"  # step one was not run again


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("run", "tiny:B"), "ended with exit code 3"),
        (("run", "tiny:C"), "there is no work/idle"),
        (("run", "tiny:D"), "there is no row 'tiny:D'; tiny has A, B, C"),
        (("show", "large"), "there is no table 'large'; there are tiny"),
        (("run", "tiny:A", "--from", "checkpoint"), "tiny:A has no published checkpoint"),
        (("report", "large"), "there is no table 'large'"),
    ],
)
def test_what_cannot_be_done_is_said(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    assert reproduce(project, monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("error: ")


def bomb(line: str, levels: int = 30) -> str:
    """YAML in which each name stands for ten of the one before."""
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([f"a0: &a0 {line}", *lines])


DAMAGES = {
    "empty": "",
    "not YAML": "a: [",
    "no tables": "steps: {}\ntables: {a: {steps: b}}",
    "a list": "[1, 2]",
    "a number": "7",
    "bytes": b"\xff\xfe",
    "aliases": bomb("[x, x]"),
    "merges": "a0: &a0 {x: 1}\n"
    + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30)),
    "a circle": "steps: {}\ntables: &a {b: *a}",
    "too deep": "a: " + "[" * 1000,
    "many digits": TINY.replace("MRR_A", "9" * 5000),
    "not a number": TINY.replace("MRR_A", ".nan"),
    "infinite": TINY.replace("MRR_A", "-.inf"),
    "a word for a number": TINY.replace("MRR_A", "good"),
    "a date": TINY.replace("MRR_A", "2021-07-11"),
    "an unknown measure": TINY.replace("{mrr: MRR_A}", "{mrr9: 0.5}"),
    "a tag": TINY.replace("MRR_A", "!!python/object/apply:os.system ['true']"),
    "a number for a title": TINY.replace("title: Tiny", "title: 7"),
    "no title": TINY.replace("    title: Tiny\n", ""),
    "no rows": TINY[: TINY.index("    rows:")] + "    rows: {}\n",
    "a number for a row": TINY.replace("      C: {", "      3: {"),
    "a row twice": TINY.replace("      C: {", "      B: {"),
    "an unknown step": TINY.replace("[one, two]", "[one, three]"),
    "a step that is no text": TINY.replace("[one, two]", "[one, null]"),
    "a step without a name": TINY.replace("[one, two]", "[one, '']"),
    "unknown steps": TINY.replace("steps: tiny", "steps: large"),
    "an unknown mode": TINY.replace("mode: dev,", "mode: night,"),
    "an unknown origin": TINY.replace("origins: {scratch:", "origins: {itch:"),
    "no origin": TINY.replace('origins: {scratch: {work: "{root}"}}', "origins: {}"),
    "a question about another row": TINY.replace('row: A, than: B}\n"', 'row: Z, than: B}\n"').replace(
        '"Is A better than B?", row: A', '"Is A better than B?", row: Z'
    ),
    "gains of another row": TINY.replace("gains: {row: A", "gains: {row: Z"),
    "seeds that are texts": TINY.replace("seeds: [1, 2]", "seeds: [one]"),
    "values in values": TINY.replace("values: {base: x}", "values: {base: [x]}"),
    "a name of nothing": TINY.replace("mkdir -p {root}", "mkdir -p {rot}"),
    "names in a circle": TINY.replace("values: {base: x}", 'values: {base: "{base}"}').replace("exit 3", "{base}"),
    "names that grow": TINY.replace(
        "values: {base: x}", f"values: {{base: '{'{b}' * 1000}', b: '{'{c}' * 1000}', c: '{'{d}' * 1000}', d: x}}"
    ).replace("exit 3", "{base}"),
    "a format": TINY.replace("exit 3", "{root:>99999999999}"),
    "an attribute": TINY.replace("exit 3", "{root.__class__}"),
    "a control character": TINY.replace("title: Tiny", 'title: "Ti\\0ny"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tables.yaml"
    content = DAMAGES[damage]
    path.write_bytes(content if isinstance(content, bytes) else content.replace("MRR_A", "0.5").encode())
    with pytest.raises(InputError) as error:
        read_tables(path)
    assert str(error.value).startswith(f"{path}") and "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 300


def test_mutated_tables_are_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is read can be reported: no error of a type that nobody expected."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    text = TINY.replace("MRR_A", "0.5").encode()
    words = b"{ } [ ] : - &a *a null 1 -.inf true ' ! ? | > {{ x".split(b" ")
    path, read = Path("tables.yaml"), 0
    for _ in range(200):
        mutated = bytearray(text)
        for place in random.integers(0, len(text), random.integers(1, 4)):
            mutated[place : place + int(random.integers(0, 6))] = words[random.integers(len(words))]
        path.write_bytes(mutated)
        try:
            tables = list(read_tables(path).values())
        except InputError:
            continue
        try:
            report = make_report(tables)
        except InputError:  # a measure that there is not
            continue
        for render in (render_text, render_markdown):
            render(report)
        read += 1
    assert 10 < read < 190, read


QUERIES = 40


def write_measured(project: Path) -> dict[str, list[list[float]]]:
    """Qrels and runs of rows A and B with two seeds; return the reciprocal ranks of each row and seed."""
    work = project / "work"
    work.mkdir()
    for mode in ("dev", "test"):
        (work / f"{mode}-qrel.tsv").write_text("".join(f"{query}\t0\t7\t1\n" for query in range(QUERIES)))
    random = np.random.default_rng(0)
    reciprocal: dict[str, list[list[float]]] = {}
    for row, ranks in (("A", (1, 2)), ("B", (2, 3, 4, 12))):
        for seed in (1, 2):
            folder = work / f"{row}-{seed}"
            folder.mkdir()
            save_encoder(tiny_model(seed), folder, folder)
            places = random.choice(ranks, QUERIES)
            for mode in ("dev", "test"):
                with open(folder / f"{mode}.rank.tsv", "w") as file:
                    for query, place in enumerate(places):
                        documents = list(range(100, 100 + place - 1)) + [7]
                        file.writelines(f"{query}\t{pid}\t{rank}\n" for rank, pid in enumerate(documents, start=1))
            reciprocal.setdefault(row, []).append([1 / place if place <= 10 else 0.0 for place in places])
    return reciprocal


def test_report_measures_what_is_there(project: Path) -> None:
    reciprocal = write_measured(project)
    means = [np.mean(values) for values in reciprocal["A"]]
    report = make_report(list(read_tables(project / "data" / "tables.yaml").values()))
    [table] = report["tables"]
    a, b, c = table["rows"]
    value = a["values"]["mrr"]
    assert value["measured"] == pytest.approx(np.mean(means), abs=1e-12)
    assert value["half_width"] == pytest.approx(stats.t.ppf(0.975, 1) * np.std(means, ddof=1) / math.sqrt(2))
    assert value["difference"] == pytest.approx(np.mean(means) - 0.5)
    assert [trial["values"]["mrr"] for trial in a["trials"]] == pytest.approx(means, abs=1e-12)
    for trial in a["trials"]:
        weights = project / "work" / f"A-{trial['seed']}" / "model.safetensors"
        assert trial["model"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        run = Path(trial["runs"]["dev"]["path"]).read_bytes()
        assert trial["runs"]["dev"]["sha256"] == hashlib.sha256(run).hexdigest()
    assert b["trials"][0]["model"] is None
    assert c["trials"] == []
    assert (c["values"]["mrr"]["measured"], c["values"]["mrr"]["status"]) == (None, "—")

    [asked] = table["questions"]
    per_query = [np.mean(reciprocal[row], axis=0) for row in ("A", "B")]
    assert asked["measures"]["mrr"]["difference"] == pytest.approx(np.mean(per_query[0] - per_query[1]))
    assert asked["measures"]["mrr"]["t_test"] == pytest.approx(
        stats.ttest_rel(*per_query).pvalue
    )  # one question: p itself
    assert asked["measures"]["mrr"]["seeds_better"] == [2, 2]
    assert asked["answer"] == "yes"
    assert table["gains"]["values"] == pytest.approx(sorted(per_query[0] - per_query[1], reverse=True), abs=1e-4)


@pytest.mark.parametrize(
    "below, expected", [(-0.1, "OK"), (0, "OK"), (0.0004, "OK"), (0.0006, "close"), (0.0029, "close"), (0.0031, "FAIL")]
)
def test_status(project: Path, below: float, expected: str) -> None:
    mean = float(np.mean(write_measured(project)["A"]))
    (project / "data" / "tables.yaml").write_text(TINY.replace("MRR_A", str(mean + below)))
    [table] = make_report(list(read_tables(project / "data" / "tables.yaml").values()))["tables"]
    assert table["rows"][0]["values"]["mrr"]["status"] == expected


def test_report_is_written_in_every_form(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_measured(project)
    for seed in (1, 2):
        with SummaryWriter(str(project / "logs" / f"A-{seed}")) as writer:
            for step in (50, 100, 150):
                writer.add_scalar("train/loss", 1 / step, step)
    text = (project / "data" / "tables.yaml").read_text()
    text = text.replace("cat {root}/one >", "cat {root}/one --log_dir logs/A-{seed} >")
    (project / "data" / "tables.yaml").write_text(text)
    assert reproduce(project, monkeypatch, "report", "--output_dir", "out") == 0
    printed = capsys.readouterr().out
    content = json.loads((project / "out" / "report.json").read_text())
    assert content["tables"][0]["rows"][0]["trials"][0]["curves"]["train/loss"] == [
        [50, 0.02],
        [100, 0.01],
        [150, 0.00667],
    ]
    measured = f"{content['tables'][0]['rows'][0]['values']['mrr']['measured']:.4f}"
    markdown, page = ((project / "out" / name).read_text() for name in ("report.md", "report.html"))
    digest = content["tables"][0]["rows"][0]["trials"][0]["runs"]["dev"]["sha256"][:12]
    for form in (printed, markdown, page):
        assert measured in form
        assert digest in form
        assert "Is A better than B?" in form
    assert page.count("<svg") == 3  # rows, loss, gains
    assert not re.search(r"<script|<link|(src|href)\s*=\s*[\"'](?!#)|url\(\s*[\"']?(?!#)|@import", page)
    assert "width=device-width" in page


NASTY = "$\\frac{$ <script>alert(1)</script> | --><b>_x_ `y`"


def test_names_are_names_in_every_form(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Not formulas, nor HTML, nor another cell of a table."""
    write_measured(project)
    name = json.dumps(NASTY)
    text = TINY.replace("MRR_A", "0.5").replace("row: A", f"row: {name}")
    text = text.replace("      A: {", f"      {name}: {{note: {name}, ")
    text = text.replace("title: Tiny", f"title: {name}").replace("name: MRR@10", f"name: {name}")
    (project / "data" / "tables.yaml").write_text(text)
    with SummaryWriter(str(project / "logs" / "A-1")) as writer:
        writer.add_scalar("train/loss", 0.5, 1)
        writer.add_scalar("train/loss", float("nan"), 2)
        writer.add_scalar("train/loss", float("inf"), 3)
    text = text.replace("cat {root}/one >", "cat {root}/one --log_dir logs/A-1 >")
    (project / "data" / "tables.yaml").write_text(text)
    assert reproduce(project, monkeypatch, "report", "--output_dir", "out") == 0
    assert NASTY in capsys.readouterr().out

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    content = json.loads((project / "out" / "report.json").read_text(), parse_constant=refuse)
    assert content["tables"][0]["rows"][0]["trials"][0]["curves"]["train/loss"] == [[1, 0.5], [2, None], [3, None]]
    markdown, page = ((project / "out" / name).read_text() for name in ("report.md", "report.html"))
    for form in (markdown, page):
        assert "<script" not in form and "<b>" not in form
        assert "&lt;script&gt;" in form
    [row] = [line for line in markdown.splitlines() if line.startswith("| \\$") and "0." in line and "±" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 10  # two measures of four columns, and the name
    assert r"\$\\frac{\$" in row and r"\_x\_ \`y\`" in row
    assert page.count("<svg") == 3


def test_runs_that_differ_in_one_query_are_reported(project: Path) -> None:
    """By a test that cannot tell them apart."""
    write_measured(project)
    work = project / "work"
    for seed in (1, 2):
        for mode in ("dev", "test"):
            for row, first in (("A", "7"), ("B", "8")):
                lines = [f"{query}\t{7 if query else first}\t1\n" for query in range(QUERIES)]
                (work / f"{row}-{seed}" / f"{mode}.rank.tsv").write_text("".join(lines))
    [table] = make_report(list(read_tables(project / "data" / "tables.yaml").values()))["tables"]
    [asked] = table["questions"]
    assert asked["measures"]["mrr"]["randomization"] == 1
    assert asked["answer"] == "not shown"


def test_a_single_query_is_reported(project: Path) -> None:
    write_measured(project)
    work = project / "work"
    for mode in ("dev", "test"):
        (work / f"{mode}-qrel.tsv").write_text("0\t0\t7\t1\n")
    report = make_report(list(read_tables(project / "data" / "tables.yaml").values()))
    [asked] = report["tables"][0]["questions"]
    assert asked["measures"]["mrr"]["low"] is None
    assert "(— to —)" in render_text(report)
    json.dumps(report, allow_nan=False)


def test_a_run_of_other_queries_is_refused(project: Path) -> None:
    write_measured(project)
    (project / "work" / "A-1" / "dev.rank.tsv").write_text("4711\t7\t1\n")
    with pytest.raises(InputError, match=r"A-1/dev\.rank\.tsv: none of its queries is judged"):
        make_report(list(read_tables(project / "data" / "tables.yaml").values()))


def test_a_run_that_lacks_queries_is_said(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_measured(project)
    (project / "work" / "A-1" / "dev.rank.tsv").write_text("0\t7\t1\n")
    make_report(list(read_tables(project / "data" / "tables.yaml").values()))
    assert any("A-1/dev.rank.tsv: lacks 39 of 40 judged queries" in message for message in caplog.messages)


def test_report_of_nothing_is_a_report() -> None:
    tables = [table for table in read_tables(TABLES, Path("nowhere")).values() if table.name != "sample"]
    report = make_report(tables)
    for render in (render_text, render_markdown, render_html):
        page = render(report)
        assert "ADORE (Rand-Neg)" in page
        assert "0.6580" in page


def test_runs_of_other_weights_and_missing_seeds_are_not_passed_off(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_measured(project)
    stamps = {1: digest_weights(tiny_model(1)), 2: digest_weights(tiny_model(7))}  # seed 2: another model's runs
    for seed, digest in stamps.items():
        stamp = project / "work" / f"A-{seed}" / "dev-query.memmap.json"
        fields = {"model": digest, "tokens": "0", "length": 8, "rows": QUERIES, "dim": 16, "dtype": "float32"}
        stamp.write_text(json.dumps(fields))
    [table] = make_report(list(read_tables(project / "data" / "tables.yaml").values()))["tables"]
    row = table["rows"][0]
    assert [trial["seed"] for trial in row["trials"]] == [1]
    assert row["note"] == "1 of 2 seeds"
    assert row["values"]["mrr"]["status"] == ""  # no verdict on a part
    assert table["questions"] == [] and table["gains"] is None
    assert any("was made by other weights" in message for message in caplog.messages)
    assert "1 of 2 seeds" in render_text({"machine": {}, "tables": [table]})


@pytest.mark.parametrize("root", ["/data/two  blanks", "/data/{braces}", "/data/it's"])
def test_any_data_root_is_taken(root: str) -> None:
    table = read_tables(TABLES, Path(root), [0, 3])["passage"]
    steps = table.rows["ADORE (STAR)"].steps(SCRATCH)
    assert all(step.makes.is_relative_to(root) for step in steps)
    for step in steps:
        assert any(word.startswith(root) for word in shlex.split(step.command)), step.command
    training = shlex.split(next(step.command for step in steps if "adore/train.py" in step.command))
    assert training[training.index("--faiss_gpu_index") :][:3] == ["--faiss_gpu_index", "0", "3"]
