"""Print the table of the quickstart: the effectiveness of the three models on the sample.

python data/sample/results.py --data_root runs/sample
"""

import argparse
from pathlib import Path

from drhard.commands import command
from drhard.files import write_json
from drhard.metrics import mean_reciprocal_rank, measure_queries, parse_measures
from drhard.qrels import read_grades, read_relevant
from drhard.runs import read_rankings, read_run

ROWS = {"Warm-up": "warmup", "STAR": "star", "ADORE (STAR)": "adore-star"}  # name -> folder of its runs


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True)
    root = parser.parse_args().data_root / "passage"

    dev_path, test_path = root / "preprocess" / "dev-qrel.tsv", root / "preprocess" / "test-qrel.tsv"
    rows = []
    for name, folder in ROWS.items():
        dev, test = (root / "evaluate" / folder / f"{mode}.rank.tsv" for mode in ("dev", "test"))
        rows.append(
            {
                "name": name,
                "mrr10": mean_reciprocal_rank(read_run(dev), read_relevant(dev_path), 10),
                "recall100": mean("R@100", dev, dev_path),
                "ndcg10": mean("nDCG@10", test, test_path),
            }
        )
    write_json(root.parent / "results.json", {"rows": rows}, indent=1)

    print(f"\n{'':14}{'dev MRR@10':>12}{'dev R@100':>12}{'test nDCG@10':>14}")
    for row in rows:
        print(f"{row['name']:14}{row['mrr10']:12.3f}{row['recall100']:12.3f}{row['ndcg10']:14.3f}")
    print(f"\nWrote {root.parent / 'results.json'}")


def mean(measure: str, run: Path, qrels: Path) -> float:
    [values] = measure_queries(parse_measures([measure]), read_rankings(run), read_grades(qrels)).values()
    return float(values.mean())


if __name__ == "__main__":
    main()
