"""Exports: other libraries read what is written, and get the same numbers. A stand-in of the hub takes an upload."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from drhard.encoder import Encoder
from drhard.errors import InputError
from drhard.exports import export_encoders, export_faiss, export_flex
from drhard.ids import Numbers
from drhard.model_folder import load_encoder, save_encoder
from drhard.runs import write_run

import faiss
import numpy as np
import pytest
from helpers import (
    ROOT,
    TEXTS,
    call_script,
    embed_texts,
    refused,
    run_python,
    save_tiny,
    save_vocabulary,
    snapshot,
    write_qrels,
)
from npids import Lookup
from sentence_transformers import SentenceTransformer


def save(folder: Path, seed: int) -> Path:
    start = save_vocabulary(save_tiny(folder / "start", seed))
    save_encoder(load_encoder(start), folder / "saved", start)
    return folder / "saved"


def test_queries_and_documents_have_their_own_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query, document = save(tmp_path / "adore", 1), save(tmp_path / "star", 2)
    write_run(tmp_path / "dev.rank.tsv", np.array([[2, 1]]), np.array([[0, 1]]))
    write_qrels(tmp_path / "dev-qrel.tsv", {0: [1]})
    models = ["--query_model", query, "--document_model", document, "--output_dir", tmp_path / "out"]
    call_script("export.py", *models, "--run", tmp_path / "dev.rank.tsv", "--qrels", tmp_path / "dev-qrel.tsv")
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'out'}\n"
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(theirs.encode_query(list(TEXTS)), embed_texts(query), atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(list(TEXTS)), embed_texts(document), atol=1e-5)
    np.testing.assert_allclose(theirs.encode(list(TEXTS)), embed_texts(document), atol=1e-5)
    assert theirs.similarity_fn_name == "dot"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| RR@10 | 0.5000 |" in card and "model.encode_query" in card
    for path in (query / "model.safetensors", document / "model.safetensors", tmp_path / "dev.rank.tsv"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card


def test_one_encoder_is_a_plain_folder(tmp_path: Path) -> None:
    model = save(tmp_path / "star", 2)
    call_script("export.py", "--query_model", model, "--output_dir", tmp_path / "out")
    assert load_encoder(tmp_path / "out").fingerprint() == load_encoder(model).fingerprint()
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(theirs.encode(list(TEXTS)), embed_texts(model), atol=1e-5)
    assert "model.encode([" in (tmp_path / "out" / "README.md").read_text()


def test_encoders_of_other_sizes_do_not_belong_together(tmp_path: Path) -> None:
    models: list[Encoder] = [
        load_encoder(save_tiny(tmp_path / str(size), output_embedding_size=size)) for size in (8, 12)
    ]
    pair = dict(zip(("query", "document"), ((model, tmp_path) for model in models), strict=True))
    with pytest.raises(InputError, match="gives 8 dimensions and the document model 12 dimensions; they do not belong"):
        export_encoders(tmp_path / "out", pair, "")
    assert not (tmp_path / "out").exists()


def test_faiss_reads_the_index_as_if_it_had_written_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drhard.exports.BLOCK_ROWS", 7)
    embeddings = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    export_faiss(tmp_path / "ours.faiss", embeddings)
    index = faiss.IndexFlatIP(12)
    index.add(embeddings)
    faiss.write_index(index, str(tmp_path / "theirs.faiss"))
    assert (tmp_path / "ours.faiss").read_bytes() == (tmp_path / "theirs.faiss").read_bytes()


def test_flex_has_the_official_ids(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    embeddings.tofile(tmp_path / "passages.memmap")
    export_flex(tmp_path / "flex", embeddings, tmp_path / "passages.memmap", Numbers(np.array([7, 5, 300]), "D"))
    assert list(Lookup(tmp_path / "flex" / "docnos.npids")) == ["D7", "D5", "D300"]
    meta = json.loads((tmp_path / "flex" / "pt_meta.json").read_text())
    assert meta == {"type": "dense_index", "format": "flex", "vec_size": 4, "doc_count": 3}
    assert (tmp_path / "flex" / "vecs.f4").read_bytes() == embeddings.tobytes()
    assert (tmp_path / "flex" / "vecs.f4").samefile(tmp_path / "passages.memmap")
    with pytest.raises(InputError, match="has 3 rows, but the collection has 2 passages"):
        export_flex(tmp_path / "other", embeddings, tmp_path / "passages.memmap", Numbers(np.array([7, 5]), "D"))
    assert not (tmp_path / "other").exists()


WRONG = {
    "nothing": ([], "nothing to do: give --output_dir, --faiss or --flex"),
    "no folder": (["--query_model", "x"], "--query_model needs --output_dir"),
    "no model": (["--output_dir", "x"], "--output_dir needs --query_model"),
    "no judgements": (["--query_model", "x", "--output_dir", "y", "--run", "z"], "--run needs --qrels"),
    "no embeddings": (["--faiss", "x"], "--faiss needs --embeddings"),
    "no such model": (["--query_model", "./x", "--output_dir", "y"], "./x: no such folder"),
    "no stamp": (["--embeddings", "./x", "--faiss", "y"], "x: has no stamp beside it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_commands_are_one_sentence(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags, complaint = WRONG[case]
    assert complaint in refused("export.py", *flags, capsys=capsys)


# The hub


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub's API that an upload uses."""

    files: dict[str, bytes]
    created: dict[str, object]

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid user token."}, 401)
        elif self.path == "/api/repos/create":
            type(self).created = json.loads(body)
            self.answer({"url": f"http://{self.headers['Host']}/me/model"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/commit/" in self.path:
            self.commit(body)
        else:
            self.answer([])  # which of the files are there already: none

    def commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        address = f"http://{self.headers['Host']}/me/model/commit/{'0' * 40}"
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": address})


@contextmanager
def hub() -> Iterator[tuple[type[Hub], str]]:
    handler = type("OneHub", (Hub,), {"files": {}, "created": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def push(model: Path, address: str, token: str) -> tuple[int, str, str]:
    words = [ROOT / "export.py", "--query_model", model, "--output_dir", model.parent / "out"]
    variables = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    ended = run_python(*words, "--push_to_hub", "me/model", "--private", **variables)
    return ended.returncode, ended.stdout, ended.stderr


def test_upload(tmp_path: Path) -> None:
    model = save(tmp_path, 3)
    with hub() as (server, address):
        code, out, err = push(model, address, "hf_right")
    assert code == 0, err
    assert out.endswith(f"Uploaded {address}/me/model\n")
    assert server.created == {"name": "model", "organization": "me", "visibility": "private"}
    assert server.files == snapshot(tmp_path / "out")


def test_upload_without_a_right_is_one_sentence(tmp_path: Path) -> None:
    model = save(tmp_path, 3)
    with hub() as (_, address):
        code, out, err = push(model, address, "hf_wrong")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: me/model: cannot be uploaded (")
    assert "Traceback" not in err and out == f"Wrote {tmp_path / 'out'}\n"
