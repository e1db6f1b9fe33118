"""Every command of docs/your-retriever.md, in order and as printed but for sizes, with a small model.

The model is a folder of sentence-transformers with random weights, under the name that the page gives. The collection
is a part of the sample.
"""

from pathlib import Path

import documented
import pytest
from helpers import SIZES, call_script, save_plain, write_sample
from sentence_transformers import SentenceTransformer

NAME = "sentence-transformers/all-MiniLM-L6-v2"
FEW = {  # appended
    "star/train.py": ("--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu"),
    "adore/train.py": ("--per_gpu_batch_size", "64", "--warmup_steps", "0"),
}
LENGTHS = {"--max_seq_length", "--max_query_length", "--max_doc_length"}


def small(words: tuple[str, ...]) -> list[str]:
    """The words with lengths that the small model takes."""
    longest = str(SIZES["max_position_embeddings"])
    return [
        longest if before in LENGTHS and int(word) > int(longest) else word
        for before, word in zip(("", *words), words, strict=False)
    ]


@pytest.mark.usefixtures("capsys")
def test_every_command_of_the_page_runs_after_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = SentenceTransformer(str(save_plain(tmp_path / "plain", "bert")), device="cpu")  # with mean pooling
    plain.save(str(tmp_path / NAME))
    copied, *commands = documented.in_document(documented.YOUR_RETRIEVER)
    assert copied.words == (
        "mkdir",
        "-p",
        "mine/passage",
        "&&",
        "cp",
        "-r",
        "data/sample/passage/dataset",
        "mine/passage/",
    )
    write_sample(tmp_path / "mine" / "passage" / "dataset")
    for command in commands:
        assert command.script is not None, command.where
        words = [*small(command.words[2:]), *FEW.get(command.script, ())]
        try:
            call_script(command.script, *words)
        except SystemExit as end:
            pytest.fail(f"{command.where}: 'python {command.script} {' '.join(words)}' ended with exit code {end.code}")
    model = SentenceTransformer(str(tmp_path / "mine" / "exported"), device="cpu")
    assert model.encode_query(["the rhine"]).shape == (1, SIZES["hidden_size"])
    card = (tmp_path / "mine" / "exported" / "README.md").read_text()
    assert "| score_scale | 1.0 |" in card  # the small model has no Normalize
