"""trec_eval.py and the measures behind it, compared with ir_measures, pytrec_eval and formulas written out."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import drhard.metrics
from drhard.errors import InputError
from drhard.metrics import parse_measures
from drhard.qrels import read_grades
from drhard.runs import Ranking, read_rankings

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from helpers import call_script, must_run, refused
from scipy import stats

Grades = dict[str, dict[str, int]]
Scores = dict[str, dict[str, float]]

DOCUMENTS = [f"D{number}" for number in range(95, 135)]  # as strings they sort otherwise than as numbers
MEASURES = ["nDCG@10", "nDCG", "R@5", "R@100", "AP", "RR", "RR@10", "P@5", "AP(rel=3)"]


def read_scored(path: Path) -> Scores:
    """What read_rankings reads, as ir_measures takes it."""
    return {qid: dict(zip(docids, scores, strict=True)) for qid, docids, scores, _ in read_rankings(path)}


def rankings(run: Scores) -> list[Ranking[str]]:
    """As read_rankings gives them."""
    return [
        Ranking(qid, ranked(of), sorted(of.values(), reverse=True), list(range(1, len(of) + 1)))
        for qid, of in run.items()
    ]


def measure_queries(measures: Sequence, run: Scores, judged: Grades) -> dict[str, dict[str, float]]:
    """The values by query."""
    values = drhard.metrics.measure_queries(measures, rankings(run), judged)
    return {name: dict(zip(judged, of.tolist(), strict=True)) for name, of in values.items()}


def judgements(seed: int) -> Grades:
    """Twenty queries with grades 0 to 3; query 19 has nothing relevant, query 18 nothing above 1."""
    random = np.random.default_rng(seed)
    judged = {}
    for query in range(20):
        documents = random.choice(DOCUMENTS, random.integers(3, 16), replace=False).tolist()
        highest = {19: 0, 18: 1}.get(query, 3)
        judged[str(query)] = {docid: int(random.integers(0, highest + 1)) for docid in documents}
    return judged


def scored_run(seed: int) -> Scores:
    """Lists for queries 3 to 19 and for 77, which nobody judged, with many equal scores."""
    random = np.random.default_rng((seed, 1))
    run = {}
    for query in (*range(3, 20), 77):
        documents = random.choice(DOCUMENTS, random.integers(1, 30), replace=False).tolist()
        run[str(query)] = {docid: random.integers(-6, 7) / 4 for docid in documents}
    return run


def ranked(scores: Mapping[str, float]) -> list[str]:
    """As trec_eval ranks: by the score, then by the greater docid."""
    return sorted(scores, key=lambda docid: (scores[docid], docid), reverse=True)


def plain_ndcg(order: Sequence[str], grades: Mapping[str, int], cut: int) -> float:
    def dcg(gains: Sequence[int]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:cut], start=1))

    ideal = dcg(sorted(grades.values(), reverse=True))
    return dcg([grades.get(docid, 0) for docid in order]) / ideal if ideal else 0.0


def plain_recall(order: Sequence[str], relevant: set[str], cut: int) -> float:
    return len(relevant & set(order[:cut])) / len(relevant) if relevant else 0.0


def plain_ap(order: Sequence[str], relevant: set[str]) -> float:
    ranks = [rank for rank, docid in enumerate(order, start=1) if docid in relevant]
    return sum(place / rank for place, rank in enumerate(ranks, start=1)) / len(relevant) if relevant else 0.0


def plain_rr(order: Sequence[str], relevant: set[str], cut: int) -> float:
    return next((1 / rank for rank, docid in enumerate(order[:cut], start=1) if docid in relevant), 0.0)


def without_ties(run: Scores) -> Scores:
    """The same order as trec_eval's, in scores that are all different."""
    return {qid: {docid: float(-rank) for rank, docid in enumerate(ranked(scores))} for qid, scores in run.items()}


def write_qrels_file(path: Path, judged: Grades) -> Path:
    path.write_text("".join(f"{qid} 0 {docid} {grade}\n" for qid, of in judged.items() for docid, grade in of.items()))
    return path


def write_trec(path: Path, run: Scores) -> Path:
    """The lines of each query in the order of their docids, ranks that say nothing."""
    lines = [f"{qid} Q0 {docid} 1 {score} tag\n" for qid, of in run.items() for docid, score in sorted(of.items())]
    path.write_text("".join(lines))
    return path


def write_ranks(path: Path, run: Scores) -> Path:
    lines = [f"{qid}\t{docid}\t{n}\n" for qid, of in run.items() for n, docid in enumerate(ranked(of), start=1)]
    path.write_text("".join(lines))
    return path


def printed_means(printed: str) -> dict[str, float]:
    """name of a measure -> its value in the lines for all queries."""
    return {name: float(value) for name, value in re.findall(r"^(\S+) *\tall\t(\S+)$", printed, re.MULTILINE)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [1, 2])
def test_values_are_those_of_ir_measures(seed: int, level: int) -> None:
    judged, run = judgements(seed), scored_run(seed)
    reference_names = MEASURES
    if level == 2:  # written out: the binary measures that do not name a grade themselves
        reference_names = [
            "nDCG@10",
            "nDCG",
            "R(rel=2)@5",
            "R(rel=2)@100",
            "AP(rel=2)",
            "RR(rel=2)",
            "RR(rel=2)@10",
            "P(rel=2)@5",
            "AP(rel=3)",
        ]
    names = [ir_measures.parse_measure(name) for name in reference_names]
    means, per_query = ir_measures.calc(names, judged, without_ties(run))  # it orders the ties of RR@10 otherwise
    values = measure_queries(parse_measures(MEASURES, level), run, judged)
    assert list(values) == list(map(str, names))
    assert all(list(of_query) == list(judged) for of_query in values.values())
    assert len(per_query) == len(names) * len(judged)
    for metric in per_query:
        assert values[str(metric.measure)][metric.query_id] == pytest.approx(metric.value, abs=1e-12)
    for measure, mean in means.items():
        assert np.mean(list(values[str(measure)].values())) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [1, 2])
def test_values_are_those_of_pytrec_eval(seed: int, level: int) -> None:
    judged, run = judgements(seed), scored_run(seed)
    names = {"nDCG@10": "ndcg_cut_10", "R@5": "recall_5", "AP": "map", "RR": "recip_rank", "P@5": "P_5"}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, set(names.values()), relevance_level=level)
    reference = evaluator.evaluate(run)
    values = measure_queries(parse_measures(list(names), level), run, judged)
    for of_query, name in zip(values.values(), names.values(), strict=True):
        for qid in judged:
            assert of_query[qid] == pytest.approx(reference.get(qid, {name: 0})[name], abs=1e-12)


@pytest.mark.parametrize("level", [1, 2])
def test_values_are_those_of_the_formulas(level: int) -> None:
    """Grade ``level`` and above is relevant to recall, AP and RR; nDCG takes all grades as they are."""
    judged, run = judgements(7), scored_run(7)
    measures = parse_measures(["nDCG@10", "R@5", "AP", "RR"], level)
    ndcg, recall, ap, rr = measure_queries(measures, run, judged).values()
    [cut_rr] = measure_queries(parse_measures(["RR@10"], level), without_ties(run), judged).values()
    different = 0
    for qid, grades in judged.items():
        order = ranked(run.get(qid, {}))
        relevant = {docid for docid, grade in grades.items() if grade >= level}
        different += relevant != {docid for docid, grade in grades.items() if grade >= 1}
        assert ndcg[qid] == pytest.approx(plain_ndcg(order, grades, 10), abs=1e-12)
        assert recall[qid] == pytest.approx(plain_recall(order, relevant, 5), abs=1e-12)
        assert ap[qid] == pytest.approx(plain_ap(order, relevant), abs=1e-12)
        assert rr[qid] == pytest.approx(plain_rr(order, relevant, 100), abs=1e-12)
        assert cut_rr[qid] == pytest.approx(plain_rr(order, relevant, 10), abs=1e-12)
    assert (different > 5) == (level == 2)
    assert sum(ndcg.values()) > 1
    assert [ndcg[qid] for qid in ("0", "1", "2", "19")] == [0] * 4  # not searched, or nothing to find


def test_ties_go_to_the_greater_docid() -> None:
    """Of all measures alike. ir_measures by itself has RR@10 from MS MARCO's script: the smaller docid first."""
    judged, run = {"1": {"D2": 1}}, {"1": {"D10": 0.5, "D2": 0.5, "D1": 0.5}}
    values = measure_queries(parse_measures(["RR", "AP", "P@1", "RR@10", "RR(rel=1)@1"]), run, judged)
    assert [of_query["1"] for of_query in values.values()] == [1, 1, 1, 1, 1]


def test_a_level_of_the_measure_itself_stays() -> None:
    assert list(map(str, parse_measures(["AP(rel=1)", "AP", "nDCG@5", "P(rel=3)@5"], 2))) == [
        "AP",
        "AP(rel=2)",
        "nDCG@5",
        "P(rel=3)@5",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "MRR10",
        "",
        "nDCG@",
        "nDCG@-1",
        "P@0",
        "nDCG@0",
        "R",
        "AP(rel=0)",
        "AP(rel='x')",
        "P@1.5",
        "1+1",
        "R@99999999999",
        "AP(rel=99999999999)",
    ],
)
def test_unknown_measures_are_refused(name: str) -> None:
    """P@0 would end the whole process inside trec_eval's code."""
    with pytest.raises(InputError, match="not a measure of ir_measures") as error:
        parse_measures(["AP", name])
    assert str(error.value).startswith(f"{name}: ")


def test_measure_that_needs_another_package_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="ir_measures cannot compute RBP") as error:
        measure_queries(parse_measures(["RBP"]), scored_run(0), judgements(0))
    assert "\n" not in str(error.value)


# What it reads


def test_all_grades_are_read_with_ids_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("301 0 D7 2\n301 Q0 007 0\nq-1\t0\tFBIS3-1\t-1\n301 0 D9 3\n")
    assert read_grades(path) == {"301": {"D7": 2, "007": 0, "D9": 3}, "q-1": {"FBIS3-1": -1}}


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "holds no judgement"),
        ("1 0 D2 1\n1 0 D3\n", "line 2: expected 'qid 0 pid grade', found 3 fields"),
        ("1 0 D2 good\n", "line 1: the grade 'good'"),
        ("1 0 D2 1.5\n", "line 1: the grade '1.5'"),
    ],
)
def test_bad_grades(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint) as error:
        read_grades(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "4\t8\t2\n4\t7\t1\n9\t1\t1\n",  # ours, in rows
        "4 D8 2\n4 D7 1\n9 D1 1\n",  # official ids
        "4 D8 2 0.5\n4 D7 1 0.25\n9 D1 1 7\n",  # with scores, which do not count
        "4 Q0 D8 1 -2 tag\n4 Q0 D7 2 -1.0 tag\n9\tQ0\tD1\t1\t-1e0\ttag\n",  # TREC's; its ranks do not count
        "4 Q0 D8 1 -2 my tag\n4 Q0 D7 2 -1.0 my other tag\n9\tQ0\tD1\t1\t-1e0\ttag\n",
        "\ufeff4 D8 2\n4 D7 1\n9 D1 1\n",
        "4 D8 2\n9 D1 1\n4 D7 1\n",  # the lines of a query are not together
    ],
    ids=["rows", "official", "official scores", "trec", "tags with blanks", "byte-order mark", "scattered"],
)
def test_runs_of_all_kinds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run"
    path.write_text(text, encoding="utf-8")
    run = read_scored(path)
    prefix = "D" if "D" in text else ""
    assert run == {"4": {f"{prefix}8": -2, f"{prefix}7": -1}, "9": {f"{prefix}1": -1}}


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "the run is empty"),
        ("1 2 1\n\n", "line 2: is empty"),
        ("1 2\n", "line 1: expected 'qid <tab> pid <tab> rank', found 2 fields"),
        ("1 2 1 high\n", "line 1: the score 'high'"),
        ("1 Q0 2 1 0.5\n", "line 1: expected 'qid Q0 docid rank score tag', found 5 fields"),
        ("1 2 1\n1 Q0 3 1 0.5 tag\n", "line 2: expected 'qid <tab> pid <tab> rank', found 6 fields"),
        ("1 Q0 3 1 0.5 tag\n1 2 1\n", "line 2: expected 'qid Q0 docid rank score tag', found 3 fields"),
        ("1 Q0 2 1 1e999 tag\n", "line 1: the score '1e999'"),
        ("1 Q0 2 1 1_0 tag\n", "line 1: the score '1_0'"),
        ("1 Q0 2\0 1 3 tag\n", r"line 1: has the control character '\\x00'"),
        ("1 Q0 2 1 3 a\x1ftag\n", r"line 1: has the control character '\\x1f'"),
        ("1 2 0\n", "line 1: the rank '0'"),
        ("1 2 first\n", "line 1: the rank 'first'"),
        ("1 Q0 2 1 high tag\n", "line 1: the score 'high'"),
        ("1 Q0 2 1 nan tag\n", "line 1: the score 'nan'"),
        ("1 Q0 2 1 -inf tag\n", "line 1: the score '-inf'"),
        ("1 D2 1\n2 D2 1\n1 D2 2\n", "line 3: query 1 has document D2 again"),
        ("1 Q0 D2 1 3 tag\n1 Q0 D2 2 2 tag\n", "line 2: query 1 has document D2 again"),
    ],
)
def test_bad_scored_runs(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "run"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint) as error:
        read_scored(path)
    assert str(error.value).startswith(str(path))


# The script


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """``qrels``, and the run ``a`` with ``b`` and ``c`` to compare it with."""
    judged = judgements(0)
    write_qrels_file(tmp_path / "qrels", judged)
    write_trec(tmp_path / "a", scored_run(0))
    write_trec(tmp_path / "b", scored_run(1))
    # One that puts relevant documents first, so that some p is small.
    best = {
        qid: {docid: grade * 100.0 + number for number, (docid, grade) in enumerate(of.items())}
        for qid, of in judged.items()
    }
    write_ranks(tmp_path / "c", best)
    return tmp_path


def test_printed_values(files: Path) -> None:
    printed = must_run("trec_eval.py", "qrels", "a", cwd=files)
    assert [line.split("\t")[:2] for line in printed.splitlines()] == [
        [f"{name:7}", "all"] for name in ("nDCG@10", "R@100", "R@1000", "AP", "RR@10")
    ]
    names = [ir_measures.parse_measure(name) for name in printed_means(printed)]
    reference = ir_measures.calc_aggregate(names, judgements(0), without_ties(scored_run(0)))
    assert printed_means(printed) == {str(name): float(f"{value:.4f}") for name, value in reference.items()}


def test_printed_values_of_queries_and_another_level(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call_script("trec_eval.py", files / "qrels", files / "a", "-l", 2, "--per_query", "-m", "nDCG@10", "AP")
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    names = {name: ir_measures.parse_measure(name) for name in ("nDCG@10", "AP(rel=2)")}
    means, per_query = ir_measures.calc(names.values(), judgements(0), scored_run(0))
    of_query = {(str(metric.measure), metric.query_id): metric.value for metric in per_query}
    expected = []
    for name, measure in names.items():
        expected += [[f"{name:9}", qid, f"{of_query[name, qid]:.4f}"] for qid in judgements(0)]
        expected.append([f"{name:9}", "all", f"{means[measure]:.4f}"])
    assert lines == expected


def test_rank_runs_of_rows_and_of_official_ids_give_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for name, prefix in (("rows", ""), ("official", "D")):
        judged, run = judgements(2), without_ties(scored_run(2))
        for content in (judged, run):
            for of_query in content.values():
                for docid in list(of_query):
                    of_query[prefix + docid[1:]] = of_query.pop(docid)
        write_qrels_file(tmp_path / f"{name}.qrels", judged)
        write_ranks(tmp_path / f"{name}.run", run)
        call_script("trec_eval.py", tmp_path / f"{name}.qrels", tmp_path / f"{name}.run")
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    reference = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], judgements(2), without_ties(scored_run(2)))
    assert printed_means(printed[0])["nDCG@10"] == float(f"{reference[ir_measures.nDCG @ 10]:.4f}")


def test_comparison(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Holm's correction goes over all measures and all runs together."""
    names, others = ["nDCG@10", "AP", "RR"], ["b", "c"]
    paths = [files / name for name in others]
    call_script("trec_eval.py", files / "qrels", files / "a", "-m", *names, "--compare", *paths)
    means, table = capsys.readouterr().out.split("\n\n", 1)
    assert "over 20 queries" in table
    rows = [line.split() for line in table.splitlines()[3:]]

    def per_query(path: Path, name: str) -> np.ndarray:
        run = {qid: dict(of) for qid, of in read_scored(path).items()}
        found = ir_measures.iter_calc([ir_measures.parse_measure(name)], judgements(0), run)
        values = {metric.query_id: metric.value for metric in found}
        return np.array([values[qid] for qid in judgements(0)])

    pairs = [(path, name) for path in paths for name in names]
    p_values, differences = [], []
    for path, name in pairs:
        a, b = per_query(files / "a", name), per_query(path, name)
        p_values.append(stats.ttest_rel(a, b).pvalue)
        differences.append((f"{b.mean():.4f}", f"{(a - b).mean():+.4f}"))
    corrected = {}
    smallest_first, largest = sorted(range(len(pairs)), key=lambda index: p_values[index]), 0.0
    for place, index in enumerate(smallest_first):
        largest = max(largest, min(1.0, p_values[index] * (len(pairs) - place)))
        corrected[index] = largest
    assert [(row[0], row[-1]) for row in rows] == [(name, str(path)) for path, name in pairs]
    assert [(row[1], row[2]) for row in rows] == differences
    assert [row[5] for row in rows] == [f"{corrected[index]:.4f}" for index in range(len(pairs))]
    assert all(float(row[3]) < float(row[2]) < float(row[4]) for row in rows)
    # The randomization test agrees about what is far from chance and what is not.
    assert max(float(row[6]) for row in rows[3:]) < 0.01 < min(float(row[6]) for row in rows[:3])
    assert printed_means(means).keys() == set(names)


def test_a_run_compared_with_itself_does_not_differ(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call_script("trec_eval.py", files / "qrels", files / "a", "-m", "AP", "--compare", files / "a")
    assert capsys.readouterr().out.splitlines()[-1].split()[2:7] == [
        "+0.0000",
        "+0.0000",
        "+0.0000",
        "1.0000",
        "1.0000",
    ]


def test_mrr_of_the_official_script_is_rr_10(preprocessed: Path, expected: Path, tmp_path: Path) -> None:
    qrels = preprocessed / "data" / "passage" / "preprocess" / "dev-qrel.tsv"
    run = expected / "data" / "passage" / "evaluate" / "star" / "dev.rank.tsv"
    official = must_run("msmarco_eval.py", qrels, run, cwd=tmp_path)
    mrr = float(re.search(r"MRR @10: (\S+)", official)[1])
    assert 0 < mrr < 1
    [values] = measure_queries(parse_measures(["RR@10"]), read_scored(run), read_grades(qrels)).values()
    assert np.mean(list(values.values())) == pytest.approx(mrr, abs=1e-12)
    printed = must_run("trec_eval.py", qrels, run, "-m", "RR@10", cwd=tmp_path)
    assert printed_means(printed) == {"RR@10": float(f"{mrr:.4f}")}


def test_what_run_and_judgements_do_not_share_is_said(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error; standard output has the values alone, as trec_eval prints them."""
    call_script("trec_eval.py", files / "qrels", files / "a", "-m", "AP")
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        f"{files / 'a'}: lacks 3 of 20 judged queries, each counts as 0; 1 of its 18 queries are not judged and do "
        "not count"
    )
    assert re.fullmatch(r"AP     \tall\t0\.\d{4}\n", printed.out)


def test_a_measure_deeper_than_the_run_is_said(
    files: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    call_script("trec_eval.py", files / "qrels", files / "a", "-m", "R@1000", "R@1", "--compare", files / "b")
    messages = [message for message in caplog.messages if "too few" in message]
    assert [message.split(": ")[0] for message in messages] == [str(files / "a"), str(files / "b")]
    assert messages[0].endswith("17 of 17 judged queries have too few documents for R@1000; the longest list has 28")


def test_ties_are_said_and_give_one_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The files of trec_eval's issue 22: RR and RR@10 of one table were 1 and 0.5."""
    (tmp_path / "qrels").write_text("1 0 B 1\n")
    (tmp_path / "run").write_text("1 Q0 A 1 0.5 tag\n1 Q0 B 2 0.5 tag\n")
    call_script("trec_eval.py", tmp_path / "qrels", tmp_path / "run", "-m", "RR", "RR@10", "nDCG@10")
    assert printed_means(capsys.readouterr().out) == {"RR": 1, "RR@10": 1, "nDCG@10": 1}
    assert any("1 of 1 judged queries have documents with equal scores" in message for message in caplog.messages)


@pytest.mark.parametrize("judged", ["1 0 A 1\n", "1 0 A 1\n2 0 A 1\n3 0 A 1\n"])
def test_runs_that_differ_in_fewer_than_two_queries_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], judged: str
) -> None:
    (tmp_path / "qrels").write_text(judged)
    (tmp_path / "a").write_text("1 A 1\n2 A 1\n")
    (tmp_path / "b").write_text("1 B 1\n1 A 2\n2 A 1\n")
    call_script("trec_eval.py", tmp_path / "qrels", tmp_path / "a", "-m", "RR", "--compare", tmp_path / "b")
    fields = capsys.readouterr().out.splitlines()[-1].split()
    assert fields[2] == ("+0.5000" if len(judged) < 10 else "+0.1667")
    assert fields[-2] == "1.0000"  # of the randomization test: either sign is as likely
    assert "nan" not in fields


@pytest.mark.parametrize("level", ["0", "-1", "1e3", "two", "9" * 30])
def test_levels_that_no_grade_has_are_refused(files: Path, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call_script("trec_eval.py", files / "qrels", files / "a", f"--level_for_rel={level}")
    assert ended.value.code == 2
    assert f"argument -l/--level_for_rel: {level!r} is not a whole number from 1" in capsys.readouterr().err


def change(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    "damage, flags, complaint",
    [
        (lambda folder: (folder / "qrels").unlink(), [], r"qrels: no such file"),
        (lambda folder: (folder / "a").unlink(), [], r"a: no such file"),
        (lambda folder: (folder / "b").unlink(), ["--compare", "b"], r"b: no such file"),
        (change("a", "1 2\n"), [], r"a, line 1: expected"),
        (change("a", "500 D7 1\n"), [], r"a: none of its queries is judged in \S*qrels"),
        (change("b", "500 D7 1\n"), ["--compare", "b"], r"b: none of its queries is judged in"),
        (change("qrels", "3 0 D7 1\n4 0 D7 1\n3 0 D7 0\n"), [], r"qrels, line 3: .* grade 0 here and 1 in line 1"),
        (change("qrels", "3 0 D7 3000000000\n"), [], r"qrels, line 1: the grade is 3000000000"),
        (change("qrels", "1 0 2\n"), [], r"qrels, line 1: expected"),
        (None, ["-m", "nDCG@10", "bleu"], r"bleu: not a measure"),
        (None, ["-m", "RBP"], r"cannot compute RBP"),
    ],
)
def test_bad_input(
    files: Path, damage: Callable | None, flags: list, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage:
        damage(files)
    flags = [files / flag if flag == "b" else flag for flag in flags]
    message = refused("trec_eval.py", files / "qrels", files / "a", *flags, capsys=capsys)
    assert re.search(complaint, message), message
