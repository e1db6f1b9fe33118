"""Write a copy of the sample to choose settings with: its last 700 training queries take the place of dev.

It has no dev or test queries, so nothing can be chosen by them:

    python data/sample/held_out.py --output_dir runs/held-out/passage/dataset
"""

import argparse
import shutil
from pathlib import Path

from drhard.commands import command
from drhard.files import read_lines, write_whole
from drhard.msmarco import PASSAGE

HELD_OUT = 700
DATASET = Path(__file__).resolve().parent / "passage" / "dataset"


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    folder = parser.parse_args().output_dir
    train, dev = PASSAGE.modes["train"], PASSAGE.modes["dev"]

    queries = [line for _, line in read_lines(DATASET / train.queries)]
    held_out = {line.split("\t")[0] for line in queries[-HELD_OUT:]}
    judgements = [line for _, line in read_lines(DATASET / train.qrels)]
    for split, lines, wanted in (
        (train.queries, queries, False),
        (dev.queries, queries, True),
        (train.qrels, judgements, False),
        (dev.qrels, judgements, True),
    ):
        with write_whole(folder / split) as unfinished:
            chosen = [line for line in lines if (line.split("\t")[0] in held_out) == wanted]
            unfinished.write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")
    collection = f"{PASSAGE.collection}.gz"
    with write_whole(folder / collection) as unfinished:
        shutil.copy(DATASET / collection, unfinished)
    print(f"Wrote {folder}: {len(queries) - HELD_OUT} train queries, {HELD_OUT} held out as dev")


if __name__ == "__main__":
    main()
