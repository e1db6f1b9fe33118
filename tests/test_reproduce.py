"""Rows, their commands, and the report: expected beside measured, tests, digests, one page that needs nothing else."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from drhard.encoder import digest_weights
from drhard.errors import InputError
from drhard.model_folder import save_encoder
from drhard.recipes import (
    CHECKPOINT,
    RUN,
    SCRATCH,
    Measure,
    Point,
    Question,
    Row,
    Step,
    Table,
    Trial,
    find_rows,
    make_step,
)
from drhard.rendering import render_html, render_markdown, render_text
from drhard.report import make_report
from drhard.strategies import STRATEGIES
from drhard.tables import all_tables
from drhard.tables_msmarco import PASSAGE_TASK, STAR, PaperRow, msmarco_table
from drhard.tables_sample import MINILM

import numpy as np
import pytest
from helpers import ROOT, call_script, load_script, parse_flags, run_python, tiny_model
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

# The published tables: MRR@10 (doc: 100), R@100, nDCG@10. R@100 of doc STAR as two later papers quote it.
PUBLISHED = {
    "passage:In-Batch Neg": (0.264, 0.837, 0.583),
    "passage:Rand Neg": (0.301, 0.853, 0.612),
    "passage:STAR": (0.3404237731386721, 0.867, 0.642),
    "passage:ADORE (In-Batch Neg)": (0.316, 0.860, 0.658),
    "passage:ADORE (Rand Neg)": (0.326, 0.865, 0.661),
    "passage:ADORE (STAR)": (0.34660697230181425, 0.876, 0.683),
    "doc:In-Batch Neg": (0.320, 0.864, 0.544),
    "doc:Rand Neg": (0.330, 0.859, 0.572),
    "doc:STAR": (0.3903422772218344, 0.913, 0.605),
    "doc:ADORE (In-Batch Neg)": (0.362, 0.884, 0.580),
    "doc:ADORE (Rand Neg)": (0.361, 0.885, 0.585),
    "doc:ADORE (STAR)": (0.4049777020859768, 0.919, 0.628),
}


TRIALS = {
    f"{row.id}, {origin}": trials
    for table in all_tables().values()
    for row in table.rows.values()
    for origin, trials in row.trials.items()
}
COMMANDS = {  # one of those that differ in numbers alone, such as seeds
    re.sub(r"\d+", "0", step.command): step.command
    for trials in TRIALS.values()
    for trial in trials
    for step in trial.steps
}.values()


def test_all_published_rows_are_there_with_their_values() -> None:
    tables = all_tables()
    rows = {row.id: tuple(row.expected.values()) for name in ("passage", "doc") for row in tables[name].rows.values()}
    assert rows | PUBLISHED == rows
    for row in (row for name in ("passage", "doc") for row in find_rows(tables, name)):
        assert set(row.trials) == {CHECKPOINT, SCRATCH, *([RUN] if row.name in ("STAR", "ADORE (STAR)") else [])}
    names = {"BM25", "Warm-up", "In-Batch Neg", "Rand Neg", "Hard only", "STAR"}
    names |= {f"ADORE ({base})" for base in ("In-Batch Neg", "Rand Neg", "STAR")}
    assert names <= set(tables["sample"].rows)
    static = {"BM25", "MiniLM", "In-Batch Neg", "STAR"}
    assert set(tables["minilm"].rows) == static | {f"ADORE ({base})" for base in ("MiniLM", "In-Batch Neg", "STAR")}


@pytest.mark.parametrize("table", all_tables().values(), ids=lambda table: table.name)
def test_tables_refer_to_rows_and_measures_that_exist(table: Table) -> None:
    for question in table.questions:
        assert {question.row, question.than} <= table.rows.keys()
    for name, row in table.rows.items():
        assert (row.table, row.name) == (table.name, name)
        assert row.expected.keys() in (set(), table.measures.keys())
    assert table.qrels.keys() == {measure.mode for measure in table.measures.values()}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:60])
def test_every_command_is_one_that_its_script_takes(command: str) -> None:
    assert command == " ".join(command.split())
    for part in command.split("&&"):
        words = shlex.split(part)
        if words[0].startswith("CUDA_VISIBLE_DEVICES="):
            words = words[1:]
        if words[0] != "python":
            assert words[0] in ("bash", "mkdir", "cp", "mv", "rm")
            continue
        script, arguments = words[1], words[2:]
        args = parse_flags(script, *arguments)  # exits for an unknown flag
        if script == "star/train.py":
            assert (args.hardneg_path is not None) == STRATEGIES[args.negatives].mined


@pytest.mark.parametrize("name", TRIALS)
def test_steps_come_after_what_they_read(name: str) -> None:
    """An earlier command of the row made each file in the data root that a command reads, or a download did."""
    reading = {"--hardneg_path", "--init_path", "--model_dir", "--pembed_path", "--dmemmap_path", "--preprocess_dir"}
    reading.add("--model_name_or_path")
    for trial in TRIALS[name]:
        made: set[str] = set()
        for step in trial.steps:
            words = shlex.split(step.command)
            read = reading - {"--preprocess_dir"} if "preprocess.py" in words else reading
            for flag, value in zip(words, words[1:], strict=False):
                if flag in read and "/" in value:
                    published = CHECKPOINT in name and "trained_models" in value
                    assert published or any(path.startswith(value) or value in path for path in made), step.command
            made.add(str(step.makes))
            made.add(str(step.makes).replace(step.makes.name, "passages.memmap"))


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_measures_what_its_steps_make(name: str) -> None:
    for trial in TRIALS[name]:
        made = {step.makes for step in trial.steps}
        assert set(trial.runs.values()) <= made
        trainings = [shlex.split(step.command) for step in trial.steps if "/train.py" in step.command]
        logs = [
            words[words.index(flag) + 1]
            for words in trainings
            for flag in words
            if flag.endswith(("ing_dir", "log_dir"))
        ]
        assert trial.log_dir == (Path(logs[-1]) if logs else None)
        seeds = {words[words.index("--seed") + 1] for words in trainings if "--seed" in words}
        assert seeds == ({str(trial.seed)} if trial.seed else set())
        if trial.model and SCRATCH in name:
            assert made & {trial.model, trial.model / "config.json"}


STAR_ON_THE_SAMPLE = """
mkdir -p runs/sample/passage && rm -rf runs/sample/passage/dataset.partial && \
cp -R data/sample/passage/dataset runs/sample/passage/dataset.partial && \
mv runs/sample/passage/dataset.partial runs/sample/passage/dataset
rm -rf runs/sample/passage/warmup.partial && cp -R data/sample/warmup runs/sample/passage/warmup.partial && \
mv runs/sample/passage/warmup.partial runs/sample/passage/warmup
python preprocess.py --data_type 1 --data_root runs/sample --model_name_or_path runs/sample/passage/warmup \
--max_query_length 64
python star/prepare_hardneg.py --data_type passage --data_root runs/sample --max_doc_length 64 --mode train --topk 10
python star/train.py --do_train --negatives star --hardneg_path runs/sample/passage/warmup_retrieve/hard.json \
--init_path runs/sample/passage/warmup --preprocess_dir runs/sample/passage/preprocess \
--output_dir runs/sample/passage/trained_models/star/seed-42 --logging_dir runs/sample/passage/log/star/seed-42 \
--seed 42 --per_device_train_batch_size 16 --max_query_length 24 --max_doc_length 64 --optimizer_str lamb \
--learning_rate 1e-3 --max_steps 1600 --warmup_steps 50 --save_steps 400
python star/inference.py --data_type passage --data_root runs/sample --max_doc_length 64 --mode dev \
--model_dir runs/sample/passage/trained_models/star/seed-42 --output_dir runs/sample/passage/evaluate/star/seed-42
"""
ADORE_ON_MINILM = """
mkdir -p runs/sample/passage && rm -rf runs/sample/passage/dataset.partial && \
cp -R data/sample/passage/dataset runs/sample/passage/dataset.partial && \
mv runs/sample/passage/dataset.partial runs/sample/passage/dataset
python data/sample/minilm.py --output_dir runs/sample/passage/minilm
python preprocess.py --data_type passage --data_root runs/sample --model_name_or_path runs/sample/passage/minilm \
--preprocess_dir runs/sample/passage/preprocess-minilm --max_seq_length 256 --max_query_length 64
python star/inference.py --data_type passage --data_root runs/sample --max_doc_length 64 --mode dev \
--model_dir runs/sample/passage/minilm --output_dir runs/sample/passage/evaluate/minilm \
--preprocess_dir runs/sample/passage/preprocess-minilm
python adore/train.py --metric_cut 200 --init_path runs/sample/passage/minilm \
--pembed_path runs/sample/passage/evaluate/minilm/passages.memmap \
--preprocess_dir runs/sample/passage/preprocess-minilm \
--model_save_dir runs/sample/passage/trained_models/minilm-adore/seed-42 \
--log_dir runs/sample/passage/log/minilm-adore/seed-42 --seed 42 --learning_rate {rate} --warmup_steps {warmup} \
--num_train_epochs {epochs} --logging_steps 50
python adore/inference.py --model_dir runs/sample/passage/trained_models/minilm-adore/seed-42/epoch-{epochs} \
--output_dir runs/sample/passage/evaluate/minilm-adore/seed-42 \
--preprocess_dir runs/sample/passage/preprocess-minilm --mode dev \
--dmemmap_path runs/sample/passage/evaluate/minilm/passages.memmap
""".format(**asdict(MINILM.adore))
ADORE_ON_DOCUMENTS = """
python reproduce.py run 'passage:STAR' --from scratch --data_root data --faiss_gpus 0 3
bash download_data.sh doc --data_root data
python preprocess.py --data_type 0 --data_root data
python star/prepare_hardneg.py --data_type doc --data_root data --retriever bm25 --mode train
CUDA_VISIBLE_DEVICES=0 python star/train.py --do_train --negatives hard \
--hardneg_path data/doc/bm25_retrieve/hard.json --init_path data/passage/scratch/trained_models/star \
--preprocess_dir data/doc/preprocess --output_dir data/doc/scratch/warmup --logging_dir data/doc/scratch/log/warmup \
--max_query_length 24 --max_doc_length 512 --optimizer_str lamb --learning_rate 1e-4 --fp16 --gradient_checkpointing
python star/prepare_hardneg.py --data_type doc --data_root data --max_query_length 32 --max_doc_length 512 \
--mode train --model_dir data/doc/scratch/warmup --output_dir data/doc/scratch/warmup_retrieve
CUDA_VISIBLE_DEVICES=0 python star/train.py --do_train --hardneg_path data/doc/scratch/warmup_retrieve/hard.json \
--init_path data/doc/scratch/warmup --preprocess_dir data/doc/preprocess \
--output_dir data/doc/scratch/trained_models/star --logging_dir data/doc/scratch/log/star \
--max_query_length 24 --max_doc_length 512 --optimizer_str lamb --learning_rate 1e-4 --fp16 --gradient_checkpointing
python star/inference.py --data_type doc --data_root data --max_doc_length 512 --mode dev \
--model_dir data/doc/scratch/trained_models/star --output_dir data/doc/scratch/evaluate/star --faiss_gpus 0 3
python adore/train.py --metric_cut 200 --init_path data/doc/scratch/trained_models/star \
--pembed_path data/doc/scratch/evaluate/star/passages.memmap --preprocess_dir data/doc/preprocess \
--model_save_dir data/doc/scratch/trained_models/adore-star --log_dir data/doc/scratch/log/adore-star \
--faiss_gpu_index 0 3
python adore/inference.py --model_dir data/doc/scratch/trained_models/adore-star/epoch-6 \
--output_dir data/doc/scratch/evaluate/adore-star --preprocess_dir data/doc/preprocess --mode dev \
--dmemmap_path data/doc/scratch/evaluate/star/passages.memmap --faiss_gpus 0 3
"""


@pytest.mark.parametrize(
    "table, row, commands",
    [
        ("sample", "STAR", STAR_ON_THE_SAMPLE),
        ("minilm", "ADORE (MiniLM)", ADORE_ON_MINILM),
        ("doc", "ADORE (STAR)", ADORE_ON_DOCUMENTS),
    ],
    ids=["sample", "minilm", "doc"],
)
def test_commands_are_these(table: str, row: str, commands: str) -> None:
    """Up to the last step, which differs from the one before in its mode alone."""
    trial = all_tables(faiss_gpus=[0, 3])[table].rows[row].trials[SCRATCH][0]
    *steps, last = [step.command for step in trial.steps]
    assert steps == commands.replace("\\\n", "").strip().splitlines()
    assert last == steps[-1].replace("--mode dev", "--mode test")


@pytest.mark.parametrize("table", ["passage", "doc"])
def test_a_fetched_run_does_not_stand_in_for_the_collection(table: str) -> None:
    """What --runs fetches is not what shows that the collection was downloaded."""
    trials = all_tables()[table].rows["STAR"].trials
    assert trials[RUN][0].qrels
    theirs = {*trials[RUN][0].qrels.values(), *trials[RUN][0].runs.values()}
    assert not theirs & {step.makes for step in trials[CHECKPOINT][0].steps}


def test_a_row_is_added_by_one_line() -> None:
    mine = PaperRow("ADORE (STAR), mine", STAR, "adore-mine", (0.35, 0.88, 0.69))
    table = msmarco_table(replace(PASSAGE_TASK, rows=(*PASSAGE_TASK.rows, mine)), Path("data"), ())
    [row] = find_rows({"passage": table}, "passage:ADORE (STAR), mine")
    assert row.expected == {"mrr": 0.35, "r100": 0.88, "ndcg10": 0.69}
    assert str(row.steps(SCRATCH)[-1].makes) == "data/passage/scratch/evaluate/adore-mine/test.rank.tsv"


@pytest.mark.parametrize("root", ["/data/two  blanks", "/data/{braces}", "/data/it's"])
def test_any_data_root_is_taken(root: str) -> None:
    row = all_tables(Path(root), [0, 3])["passage"].rows["ADORE (STAR)"]
    steps = row.steps(SCRATCH)
    assert all(step.makes.is_relative_to(root) for step in steps)
    for step in steps:
        assert any(word.startswith(root) for word in shlex.split(step.command)), step.command
    [trial] = row.trials[SCRATCH]
    assert all(path and path.is_relative_to(root) for path in (*trial.runs.values(), trial.model, trial.log_dir))
    training = shlex.split(next(step.command for step in steps if "adore/train.py" in step.command))
    assert training[training.index("--faiss_gpu_index") :][:3] == ["--faiss_gpu_index", "0", "3"]


def tiny_table(expected: float = 0.5, a: str = "A", log_dirs: str = "logs/none") -> Table:
    """Rows A and B of two seeds, and C, which has none.

    Args:
        expected: MRR of row A.
        a: another name for row A, for the table and for its first measure.
        log_dirs: TensorBoard's folders of row A, without ``-SEED``.
    """
    one, bad, idle = (
        lambda seed: make_step("work/one", f"mkdir -p work && echo {seed} >> work/one"),
        make_step("work/bad", "exit 3"),
        make_step("work/idle", "true"),
    )

    def trial(row: str, seed: int | None, *steps: Step, model: Path | None = None) -> Trial:
        folder = f"work/{row}-{seed}" if seed else f"work/{row}"
        runs = {mode: Path(f"{folder}/{mode}.rank.tsv") for mode in ("dev", "test")}
        return Trial(seed, steps, model, runs, Path(f"{log_dirs}-{seed}") if model else None)

    trials_of_a = tuple(
        trial(
            "A",
            seed,
            one(seed),
            make_step(f"work/two-{seed}", f"cat work/one > work/two-{seed}"),
            model=Path(f"work/A-{seed}"),
        )
        for seed in (1, 2)
    )
    rows = (
        Row("tiny", a, {"mrr": expected}, {SCRATCH: trials_of_a}, note="" if a == "A" else a),
        Row("tiny", "B", {}, {SCRATCH: tuple(trial("B", seed, one(seed), bad) for seed in (1, 2))}),
        Row("tiny", "C", {}, {SCRATCH: (trial("C", None, idle),)}),
    )
    return Table(
        name="tiny",
        title="Tiny" if a == "A" else a,
        source="nowhere",
        measures={
            "mrr": Measure("MRR@10" if a == "A" else a, "dev", "RR@10"),
            "ndcg10": Measure("nDCG@10", "test", "nDCG@10"),
        },
        ok=0.0005,
        close=0.003,
        qrels={mode: Path(f"work/{mode}-qrel.tsv") for mode in ("dev", "test")},
        rows={row.name: row for row in rows},
        questions=(Question("Is A better than B?", a, "B"),),
    )


Reproduce = Callable[..., int]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reproduce(project: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduce:
    """Runs reproduce.py with a table of its own, in this process and in ``project``; returns the exit code."""
    script = load_script("reproduce.py")
    monkeypatch.setattr(script, "PROJECT", project)

    def run(*arguments: str, table: Table | None = None) -> int:
        monkeypatch.setattr(script, "all_tables", lambda *_: {"tiny": table or tiny_table()})
        try:
            call_script("reproduce.py", *arguments)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def test_what_is_light_stays_light() -> None:
    """Flags are parsed before anything is loaded that takes seconds."""
    heavy = {"torch", "transformers", "tensorboard", "matplotlib", "numpy", "scipy", "jinja2"}
    code = f"import sys, reproduce; print({heavy} & sys.modules.keys())"
    assert run_python("-c", code, cwd=ROOT).stdout == "set()\n"


def test_list_and_show(reproduce: Reproduce, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["tiny:A", "tiny:B", "tiny:C"]
    assert reproduce("show", "tiny:A") == 0
    assert capsys.readouterr().out.splitlines() == [  # a step that both seeds have is there once, the first one's
        "mkdir -p work && echo 1 >> work/one",
        "cat work/one > work/two-1",
        "cat work/one > work/two-2",
    ]


def test_run_makes_what_is_missing(project: Path, reproduce: Reproduce) -> None:
    assert reproduce("run", "tiny:A", "--dry_run") == 0
    assert not (project / "work").exists()
    assert reproduce("run", "tiny:A") == 0
    assert (project / "work" / "two-2").read_text() == "1\n"
    (project / "work" / "two-1").unlink()
    assert reproduce("run", "tiny:A") == 0
    assert (project / "work" / "two-1").read_text() == "1\n"  # step one was not run again


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("run", "tiny:B"), "ended with exit code 3"),
        (("run", "tiny:C"), "did not write work/idle"),
        (("run", "tiny:D"), "there is no row 'tiny:D'; tiny has A, B, C"),
        (("show", "large"), "there is no table 'large'; there are tiny"),
        (("run", "tiny:A", "--from", "checkpoint"), "tiny:A has no published checkpoint"),
        (("report", "large"), "there is no table 'large'"),
    ],
)
def test_what_cannot_be_done_is_said(
    reproduce: Reproduce, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    assert reproduce(*arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("error: ")


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
    report = make_report([tiny_table()])
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
    gains = per_query[0] - per_query[1]
    shown = asked["changes"]["gaining"]
    assert [query["gain"] for query in shown] == pytest.approx(sorted(gains, reverse=True)[:5])
    assert [query["qid"] for query in shown] == [str(place) for place in np.argsort(-gains, kind="stable")[:5]]
    of_a = [round(1 / reciprocal["A"][seed][int(shown[0]["qid"])]) for seed in (0, 1)]
    assert shown[0]["ranks"][0] == of_a
    assert shown[0]["relevant"] == ["7"] and shown[0]["tops"][0] == (["7"] if of_a[0] == 1 else ["100", "7"])


@pytest.mark.parametrize(
    "below, expected", [(-0.1, "OK"), (0, "OK"), (0.0004, "OK"), (0.0006, "close"), (0.0029, "close"), (0.0031, "FAIL")]
)
def test_status(project: Path, below: float, expected: str) -> None:
    mean = float(np.mean(write_measured(project)["A"]))
    [table] = make_report([tiny_table(mean + below)])["tables"]
    assert table["rows"][0]["values"]["mrr"]["status"] == expected


def test_report_is_written_in_every_form(
    project: Path, reproduce: Reproduce, capsys: pytest.CaptureFixture[str]
) -> None:
    write_measured(project)
    for seed in (1, 2):
        with SummaryWriter(str(project / "logs" / f"A-{seed}")) as writer:
            for step in (50, 100, 150):
                writer.add_scalar("train/loss", 1 / step, step)
    assert reproduce("report", "--output_dir", "out", table=tiny_table(log_dirs="logs/A")) == 0
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
    assert page.count("<svg") == 3  # rows, answers, loss
    assert "queries gain, " in markdown and "queries gain, " in page
    ranks = "2, 1" if "| 2, 1 |" in markdown else "1, 1"
    assert f"A: {ranks}</h5>" in page
    assert "mathdefault" not in page  # no formulas on the logarithmic scale
    assert not re.search(r"<script|<link|(src|href)\s*=\s*[\"'](?!#)|url\(\s*[\"']?(?!#)|@import", page)
    assert "width=device-width" in page


NASTY = "$\\frac{$ <script>alert(1)</script> | --><b>_x_ `y`"


def test_names_are_names_in_every_form(project: Path, reproduce: Reproduce, capsys: pytest.CaptureFixture[str]) -> None:
    """Not formulas, nor HTML, nor another cell of a table."""
    write_measured(project)
    with SummaryWriter(str(project / "logs" / "A-1")) as writer:
        writer.add_scalar("train/loss", 0.5, 1)
        writer.add_scalar("train/loss", float("nan"), 2)
        writer.add_scalar("train/loss", float("inf"), 3)
    assert reproduce("report", "--output_dir", "out", table=tiny_table(a=NASTY, log_dirs="logs/A")) == 0
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
    [table] = make_report([tiny_table()])["tables"]
    [asked] = table["questions"]
    assert asked["measures"]["mrr"]["randomization"] == 1
    assert asked["answer"] == "not shown"


def test_a_single_query_is_reported(project: Path) -> None:
    write_measured(project)
    work = project / "work"
    for mode in ("dev", "test"):
        (work / f"{mode}-qrel.tsv").write_text("0\t0\t7\t1\n")
    report = make_report([tiny_table()])
    [asked] = report["tables"][0]["questions"]
    assert asked["measures"]["mrr"]["low"] is None
    assert "(— to —)" in render_text(report)
    json.dumps(report, allow_nan=False)


def test_a_run_of_other_queries_is_refused(project: Path) -> None:
    write_measured(project)
    (project / "work" / "A-1" / "dev.rank.tsv").write_text("4711\t7\t1\n")
    with pytest.raises(InputError, match=r"A-1/dev\.rank\.tsv: none of its queries is judged"):
        make_report([tiny_table()])


def test_a_run_that_lacks_queries_is_said(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_measured(project)
    (project / "work" / "A-1" / "dev.rank.tsv").write_text("0\t7\t1\n")
    make_report([tiny_table()])
    assert any("A-1/dev.rank.tsv: lacks 39 of 40 judged queries" in message for message in caplog.messages)


@pytest.mark.usefixtures("project")
def test_report_of_nothing_is_a_report() -> None:
    report = make_report([replace(table, records=None) for table in all_tables(Path("nowhere")).values()])
    for render in (render_text, render_markdown, render_html):
        page = render(report)
        assert "ADORE (Rand Neg)" in page
        assert "0.6580" in page
        assert "ADORE (MiniLM)" in page


def test_a_row_without_seeds_is_compared_with_each_seed(project: Path) -> None:
    write_measured(project)
    table = tiny_table()
    b = table.rows["B"]
    once = replace(b, trials={SCRATCH: (replace(b.trials[SCRATCH][0], seed=None),)})
    [asked] = make_report([replace(table, rows={**table.rows, "B": once})])["tables"][0]["questions"]
    assert asked["measures"]["mrr"]["seeds_better"] == [2, 2]


def test_runs_of_other_weights_and_missing_seeds_are_not_passed_off(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_measured(project)
    stamps = {1: digest_weights(tiny_model(1)), 2: digest_weights(tiny_model(7))}  # seed 2: another model's runs
    for seed, digest in stamps.items():
        stamp = project / "work" / f"A-{seed}" / "dev-query.memmap.json"
        fields = {"model": digest, "tokens": "0", "length": 8, "rows": QUERIES, "dim": 16, "dtype": "float32"}
        stamp.write_text(json.dumps(fields))
    [table] = make_report([tiny_table()])["tables"]
    row = table["rows"][0]
    assert [trial["seed"] for trial in row["trials"]] == [1]
    assert row["note"] == "1 of 2 seeds"
    assert row["values"]["mrr"]["status"] == ""  # no verdict on a part
    assert table["questions"] == [] and table["power"] is None
    assert any("was not made by the weights" in message for message in caplog.messages)
    assert "1 of 2 seeds" in render_text({"machine": {}, "tables": [table]})


def write_differences(project: Path, differences: np.ndarray) -> None:
    """Runs of A and B that differ in the reciprocal rank by 0 or 0.5 and its sign in each query."""
    write_measured(project)
    for row, sign in (("A", 1), ("B", -1)):
        for seed in (1, 2):
            lines = [
                f"{query}\t{9 if difference * sign < 0 else 7}\t1\n{query}\t{7 if difference * sign < 0 else 9}\t2\n"
                for query, difference in enumerate(differences)
            ]
            for mode in ("dev", "test"):
                (project / "work" / f"{row}-{seed}" / f"{mode}.rank.tsv").write_text("".join(lines))


@pytest.mark.parametrize(
    "margin, gains, losses, answer",
    [
        (None, 20, 2, "yes"),
        (None, 2, 20, "no"),
        (None, 4, 4, "not shown"),
        (0.01, 20, 2, "yes"),
        (0.01, 4, 4, "not shown"),  # the interval is wider than the margin
        (0.2, 4, 4, "yes"),
        (0.4, 2, 20, "yes"),  # worse, but by less than the margin
        (0.2, 2, 20, "no"),
    ],
)
def test_answers_are_one_word(project: Path, margin: float | None, gains: int, losses: int, answer: str) -> None:
    differences = np.repeat([1, -1, 0], [gains, losses, QUERIES - gains - losses]) / 2
    write_differences(project, differences)
    table = tiny_table()
    [question] = table.questions
    report = make_report([replace(table, questions=(replace(question, margin=margin),))])
    [asked] = report["tables"][0]["questions"]
    assert asked["measures"]["mrr"]["difference"] == pytest.approx(differences.mean())
    assert asked["answer"] == answer
    text, page = render_markdown(report), render_html(report)
    assert ("as good as another" in text) == (margin is not None)
    assert ("the dashed line" in page) == (margin is not None)
    least = asked["measures"]["mrr"]["least_found"]
    assert (f"a true difference of {least:.4f} would have been found" in text) == (answer == "not shown")


def test_power_is_that_of_the_strictest_of_all_tests(project: Path) -> None:
    """A test at 5 % / questions, on queries whose true difference is the one that is reported, finds it in 80 %."""
    write_differences(project, np.repeat([1, -1, 0], [10, 8, QUERIES - 18]) / 2)
    table = tiny_table()
    [question] = table.questions
    again = replace(question, question="Is it the other way round?", row="B", than="A")
    [content] = make_report([replace(table, questions=(question, again))])["tables"]
    assert content["power"] == {"power": 0.8, "level": 0.025}
    least = content["questions"][0]["measures"]["mrr"]["least_found"]
    differences = np.repeat([0.5, -0.5, 0], [10, 8, QUERIES - 18])
    random = np.random.default_rng(1)
    drawn = random.normal(least, differences.std(ddof=1), (4000, QUERIES))
    found = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.025
    assert found.mean() == pytest.approx(0.8, abs=0.025)


def test_questions_on_one_axis_make_a_curve(project: Path) -> None:
    reciprocal = write_measured(project)
    table = tiny_table()
    rows = {**table.rows, "A, again": replace(table.rows["A"], name="A, again")}
    questions = [
        Question("After 50 steps?", "A, again", "B", point=Point("steps", 50)),
        Question("After 100 steps?", "A", "B", point=Point("steps", 100)),
        Question("In 7 passages?", "A", "B", point=Point("passages", 7)),  # a single point
    ]
    report = make_report([replace(table, rows=rows, questions=tuple(questions))])
    [trend] = report["trends"]
    assert (trend["axis"], trend["measure"], list(trend["rows"])) == ("steps", "MRR@10", ["A", "B"])
    means = {row: [float(np.mean(values)) for values in of_seeds] for row, of_seeds in reciprocal.items()}
    differences = np.subtract(means["A"], means["B"])
    half = stats.t.ppf(0.975, 1) * differences.std(ddof=1) / math.sqrt(2)
    assert trend["difference"] == [[at, pytest.approx(differences.mean()), pytest.approx(half)] for at in (50, 100)]
    assert trend["rows"]["A"][0][:2] == [50, pytest.approx(np.mean(means["A"]))]
    assert f"| 100 | {np.mean(means['A']):.4f} ± " in render_markdown(report)
    page = render_html(report)
    assert page.count("<svg") == 4  # rows, answers; values, difference
    assert "MRR@10 by the steps" in page
