"""Embedders: a local encoder pools what the words themselves say, an endpoint is asked in batches, failures have words."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saescope.store import Store
from saescope.web.embedding import make_embedder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "numbers", "in", "code", "brackets", "that", "close"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    BertModel(config).eval().save_pretrained(folder)
    return folder


def test_vectors_are_means_over_the_words_alone(encoder: Path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["numbers in code", "brackets", "that close numbers in brackets in code", ""]
    vectors = make_embedder(str(encoder))(texts)
    assert vectors.shape == (4, 16)
    assert vectors.dtype == np.float32
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        for text, vector in zip(texts[:3], vectors[:3], strict=True):  # each alone: no padding to be left out
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            expected = model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
            np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert np.isfinite(vectors).all()


def test_long_texts_are_cut_to_what_the_encoder_reads(encoder: Path):
    embed = make_embedder(str(encoder))
    np.testing.assert_allclose(embed(["numbers " * 500]), embed(["numbers " * 10]), atol=1e-5)
    many = embed(["numbers", "code"] * 100)
    np.testing.assert_allclose(many[-1], embed(["code"])[0], atol=1e-5)


class Endpoint(BaseHTTPRequestHandler):
    """Gives a text's length and its number in the batch, in the wrong order."""

    asked: list[dict[str, Any]]
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append({"path": self.path, "key": self.headers["authorization"], **body})
        data = [{"object": "embedding", "index": i, "embedding": [len(t), i, 1]} for i, t in enumerate(body["input"])]
        answer = {
            "object": "list",
            "data": data[::-1],
            "model": body["model"],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        content = json.dumps(answer if self.status == 200 else {"error": {"message": "no such model"}}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Endpoint]]]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    handler = type("Handler", (Endpoint,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_is_asked_in_batches_and_its_order_is_undone(endpoint: Any):
    address, handler = endpoint
    texts = ["x" * i for i in range(1, 101)]
    vectors = make_embedder(f"{address}#small")(texts)
    assert vectors[:, 0].tolist() == list(range(1, 101))
    assert vectors[:, 1].tolist() == [i % 64 for i in range(100)]
    assert [(asked["path"], asked["model"], len(asked["input"])) for asked in handler.asked] == [
        ("/v1/embeddings", "small", 64),
        ("/v1/embeddings", "small", 36),
    ]


def test_what_an_endpoint_says_is_passed_on(endpoint: Any):
    address, handler = endpoint
    handler.status = 404
    with pytest.raises(ValueError, match=r"gave no vectors: .*no such model"):
        make_embedder(f"{address}#nothing")(["a"])


def test_an_endpoint_that_is_away_has_words():
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/v1 gave no vectors: Connection error"):
        make_embedder("http://127.0.0.1:9/v1#m")(["a"])


def test_what_is_no_embedder_is_refused(tmp_path: Path, encoder: Path):
    with pytest.raises(ValueError, match="which model embeds"):
        make_embedder("http://127.0.0.1:1/v1")
    with pytest.raises(FileNotFoundError, match="no folder"):
        make_embedder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        make_embedder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="can not be loaded"):
        make_embedder(str(tmp_path))(["a"])


def test_the_store_finds_by_meaning_with_it(store: Store, encoder: Path):
    name = str(encoder)
    embed = make_embedder(name)
    (explanation,) = [each for _, each in store.explanations()]
    assert store.embed(None, name, embed) == 1
    ((feature, found, cosine),) = store.similar(None, embed([explanation.text])[0], name)
    assert (feature.index, found.text) == (3, explanation.text)
    assert cosine == pytest.approx(1.0, abs=1e-5)
