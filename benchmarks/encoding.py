"""Encoding: our way against the published one, which takes batches of 32 in file order, padded to the longest.

The model has roberta-base's size and random weights. The passages are random, with lengths like MS MARCO's: a median
of 65 tokens, cut at 256. Both methods must give the same embeddings to within 1e-5. The limit is the time of the
model's own matrix products, without padding, at the rate of a large square product by torch or NumPy.

    python benchmarks/encoding.py
    python benchmarks/encoding.py --passages 256 --rounds 3 --output encoding.json
"""

import argparse
import tempfile
from pathlib import Path

from drhard.commands import command
from drhard.devices import choose_device
from drhard.embeddings import encode, open_embeddings
from drhard.roberta_dot import RobertaDot
from drhard.tokens import PASSAGES, TokenMemmap

import numpy as np
import torch
from measuring import arguments, compare, measure_with_rate, peak_memory_gb, positive, save, show, show_machine
from stand_ins import flops, passage_lengths, random_encoder, write_tokens

BATCH = 32
LONGEST = 256  # tokens of a passage


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--passages", type=positive, default=512)
    parser.add_argument("--layers", type=positive, default=12)
    parser.add_argument("--rounds", type=positive, default=3)
    return parser.parse_args()


@torch.no_grad()
def encode_as_published(model: RobertaDot, tokens: TokenMemmap, device: torch.device) -> np.ndarray:
    """Return the embeddings (rows, dim), computed by batches in file order."""
    parts = []
    for first in range(0, len(tokens), BATCH):
        ids, mask = tokens.batch(np.arange(first, min(first + BATCH, len(tokens))), model.config.pad_token_id)
        parts.append(model(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).cpu().numpy())
    return np.concatenate(parts)


@command
def main() -> None:
    args = parse_arguments()
    device = choose_device()
    model = random_encoder(args.layers).eval().to(device)
    config = model.config
    with tempfile.TemporaryDirectory() as folder:
        lengths = passage_lengths(np.random.default_rng(0), args.passages, LONGEST)
        write_tokens(Path(folder), PASSAGES, lengths, LONGEST, config.vocab_size)
        tokens = TokenMemmap.open(folder, PASSAGES, LONGEST)
        expected = encode_as_published(model, tokens, device)
        path = Path(folder) / "passages.embeddings"

        def ours() -> None:
            path.unlink(missing_ok=True)
            encode(model, tokens, path, BATCH, device)

        ways = {
            "published: file order, padded to the longest of 32": lambda: encode_as_published(model, tokens, device),
            "ours": ours,
        }
        show_machine()
        seconds, rate = measure_with_rate(ways, args.rounds, str(device))
        rows = compare(seconds, next(iter(ways)))
        difference = float(np.abs(open_embeddings(path, expected.shape[1]) - expected).max())
        if difference > 1e-5:
            raise SystemExit(f"error: the embeddings differ by {difference:g}; a faster wrong answer is no answer")
    work = flops(config, tokens.lengths)
    rows.append({"way": "limit: the model's products at the rate of a square one", "seconds": work / rate})
    rows[-1]["times_faster"] = rows[0]["seconds"] / rows[-1]["seconds"]
    for row in rows:
        row |= {"tokens_per_s": int(tokens.lengths.sum()) / row["seconds"], "gflops": work / row["seconds"] / 1e9}
    columns = ("way", "seconds", "times_faster", "tokens_per_s", "gflops")
    show(
        f"{args.passages} passages of {np.median(tokens.lengths):.0f} tokens (median), {args.layers} layers, {device}; "
        f"embeddings equal to {difference:.1g}",
        ["method", "seconds", "speed-up", "tokens/s", "GFLOP/s"],
        [[row[column] for column in columns] for row in rows],
    )
    save(
        args.output,
        {"passages": args.passages, "difference": difference, "ways": rows, "peak_memory_gb": peak_memory_gb()},
    )


if __name__ == "__main__":
    main()
