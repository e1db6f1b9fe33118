"""Download MS MARCO's and TREC's files into {data_root}/{passage,doc}/dataset, where preprocess.py reads them.

Each download is checked against its md5, then unpacked. A file gets its name only when it is whole. Interrupted
downloads resume. Existing files are skipped. Disk: 5 GB for passage, 9 GB for doc, and 0.5 GB for each checkpoint.

    bash download_data.sh                    # everything
    bash download_data.sh passage            # one of the two
    bash download_data.sh passage --models   # also the published checkpoints, with gdown
    bash download_data.sh passage --runs     # only the published runs, with gdown, and the judgements

--runs writes {data_root}/{passage,doc}/published_runs/{star,adore-star}/{dev,test}.rank.tsv, with official ids whatever
ids the published files have. reproduce.py run ROW --from run and trec_eval.py --compare use them.

download_data.sh finds a Python for this program. It needs no packages, except with --models and --runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from drhard.commands import command
from drhard.downloads import (
    Manifest,
    RemoteFile,
    download,
    download_checkpoint,
    forget_archive,
    import_gdown,
    is_checkpoint,
    read_manifest,
)
from drhard.errors import InputError

DATASETS = ("passage", "doc")
HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bash download_data.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", choices=DATASETS, help="one of the two (default: both)")
    parser.add_argument("--data_root", type=Path, default=Path("./data"), help="default: ./data")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--models",
        action="store_true",
        help="also download the published checkpoints, into {data_root}/{passage,doc}/warmup and trained_models",
    )
    kind.add_argument(
        "--runs",
        action="store_true",
        help="download only the published runs of the dev and test queries, and the judgements that measure them",
    )
    kind.add_argument(
        "--train_runs",
        action="store_true",
        help="as --runs, but of the training queries: much larger, and of use only to choose hard negatives from",
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        default=HERE / "data" / "downloads.json",
        help="list of files and their addresses (default: data/downloads.json of the project)",
    )
    return parser.parse_args()


class ProgressLine:
    """Show bytes, rate and time left: a line that updates itself on a terminal, a line every 30 seconds in a log."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.terminal else 30.0  # seconds
        self.stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage or done < self.first:  # it shrinks if a download has to start over
            self.stage, self.first, self.begun, self.shown = stage, done, now, now
        if now - self.shown < self.interval:
            return
        self.shown = now
        rate = (done - self.first) / (now - self.begun)
        left = f", {_clock((total - done) / rate)} left" if total > done and rate else ""
        line = f"  {stage}: {_bytes(done)} of {_bytes(max(done, total))}, {_bytes(rate)}/s{left}"
        self._write(line)

    def clear(self) -> None:
        """Clear the line, and get ready for the next file."""
        self.stage = ""
        if self.terminal:
            self._write("")

    def _write(self, line: str) -> None:
        # On a terminal, the cursor returns to the start of the line, so the next text overwrites this one.
        text = f"{line:<79}\r" if self.terminal else f"{line}\n"
        print(text, end="", file=sys.stderr, flush=True)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


@command
def main() -> None:
    args = parse_arguments()
    manifest = read_manifest(args.manifest)
    datasets = [args.dataset] if args.dataset else DATASETS
    modes = ["train"] if args.train_runs else ["dev", "test"] if args.runs else []
    if args.models or modes:
        import_gdown()  # if it is missing, fail now, not after hours of downloading
    if modes:
        for dataset in datasets:
            fetch_runs(manifest, dataset, args.data_root / dataset, modes)
        return
    for dataset in datasets:
        files = [file for file in manifest.files if file.dataset == dataset]
        fetch_files(manifest, files, args.data_root / dataset / "dataset")
    for dataset in datasets if args.models else ():
        fetch_checkpoints(manifest, dataset, args.data_root / dataset)


def fetch_files(manifest: Manifest, files: Sequence[RemoteFile], folder: Path) -> None:
    progress = ProgressLine()
    for file in files:
        if not file.missing(folder):
            forget_archive(file, folder)
            print(f"Already exists: {', '.join(str(folder / name) for name in file.names)}")
            continue
        print(f"Fetching {file.url}", flush=True)
        begun = time.monotonic()
        try:
            written = download(file, folder, manifest.headers_for(file.url), progress)
        finally:
            progress.clear()
        if written:  # empty if another process was faster
            print(f"Wrote {', '.join(str(folder / name) for name in written)} in {_clock(time.monotonic() - begun)}")


def fetch_checkpoints(manifest: Manifest, dataset: str, folder: Path) -> None:
    for checkpoint in manifest.checkpoints:
        if checkpoint.dataset != dataset:
            continue
        place = folder / checkpoint.folder
        if is_checkpoint(place):
            print(f"Already exists: {place}")
            continue
        print(f"Fetching {checkpoint.url}", flush=True)
        download_checkpoint(checkpoint, place)
        print(f"Wrote {place}")


def fetch_runs(manifest: Manifest, dataset: str, folder: Path, modes: Sequence[str]) -> None:
    """Fetch the runs of ``modes`` and their judgements."""
    try:
        from drhard.msmarco import CORPORA
        from drhard.published_runs import fetch_run
        from drhard.runs import run_path
    except (ImportError, TypeError):  # of a Python without packages, or older than 3.11
        raise InputError(
            f"--runs needs Python 3.11 or later with the project's packages, and {sys.executable} lacks them; install "
            "them as README.md says"
        ) from None
    judgements = [CORPORA[dataset].modes[mode].qrels or "" for mode in modes]
    fetch_files(manifest, manifest.only(dataset, judgements), folder / "dataset")
    for run in manifest.runs:
        if run.dataset != dataset or run.mode not in modes:
            continue
        path = run_path(folder / run.folder, run.mode)
        if path.exists():
            print(f"Already exists: {path}")
            continue
        print(f"Fetching {run.url}", flush=True)
        found = fetch_run(run, folder, path)
        if found:
            print(f"Wrote {path}; it had {found}", flush=True)


if __name__ == "__main__":
    main()
