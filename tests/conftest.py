"""Parts that many tests need: a tiny random model with a tokenizer of its own, and a little text."""

from __future__ import annotations

import os

# set before numeric libraries load: several test processes share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None)  # seeded, and timing never decides
settings.load_profile("house")

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda_", "mu"]


def make_text(number: int, num_lines: int = 12) -> str:
    """A small document of Python-like lines, different for every number."""
    return "".join(
        f"def {WORDS[(number + i) % 12]}(x, {WORDS[(3 * number + i) % 12]}):\n    return x + {number * 7 + i}\n"
        for i in range(num_lines)
    )


@pytest.fixture(scope="session", autouse=True)
def results_kept_apart(tmp_path_factory):
    """Evaluations find nothing that an earlier run of the tests has kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAESCOPE_CACHE", str(tmp_path_factory.mktemp("kept")))
        yield


@pytest.fixture(scope="session")
def missing():
    """``missing(tool, hint)`` skips the test, or fails it where SAESCOPE_REQUIRE promised the tool."""

    def skip_or_fail(tool: str, hint: str) -> None:
        if tool in os.environ.get("SAESCOPE_REQUIRE", "").split(","):
            pytest.fail(hint)
        pytest.skip(hint)

    return skip_or_fail


@pytest.fixture(scope="session")
def documents():
    from saescope.activations import Document

    return [Document(f"doc{i}.py", make_text(i, 3 + i % 9)) for i in range(40)]


@pytest.fixture(scope="session")
def tokenizer(documents):
    """A byte-level BPE tokenizer of 320 tokens with <|endoftext|> as its one special token (id 0)."""
    from saescope.models.bundled.tokenizer import train_tokenizer

    return train_tokenizer((document.text for document in documents), vocab_size=320, context_size=32)


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """A random GPT-2 of 3 layers, width 16, context 32, as a LanguageModel."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from saescope.models import LanguageModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return LanguageModel(GPT2LMHeadModel(config), tokenizer, "tiny")


@pytest.fixture(scope="session")
def windows(documents, tokenizer):
    """The documents in windows of 32 tokens."""
    from saescope.activations import TokenWindows, WindowConfig

    return TokenWindows.build(documents, tokenizer, WindowConfig(context_size=32))
