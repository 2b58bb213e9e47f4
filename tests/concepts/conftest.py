"""Tiny models of both kinds with tokenizers of their own: a classifier like BERT, a causal model like GPT-2."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch

_SUBJECTS = ["The film", "This long play", "Dr. Brown's book", "A quiet song", "Her second novel", "That old series"]
_VERBS = ["was", "is", "seemed", "felt", "remains"]
_JUDGEMENTS = ["good", "bad", "wonderful", "dull", "surprisingly charming", "far too slow, really", "unforgettable"]
_ENDS = ["!", ".", "?", ". I liked it", ". We left early. Never again!", '. "Why?" she asked.']


class Local(NamedTuple):
    """A Hugging Face model, its tokenizer, and the folder where both are saved."""

    model: Any
    tokenizer: Any
    folder: str

    def double(self) -> Any:
        """A copy of the model in float64."""
        return copy.deepcopy(self.model).double()


@pytest.fixture(scope="session")
def reviews() -> list[str]:
    """100 short texts of one to three sentences, of different lengths."""
    return [
        f"{_SUBJECTS[i % 6]} {_VERBS[(i // 3) % 5]} {_JUDGEMENTS[(5 * i + i // 7) % 7]}{_ENDS[(i // 2) % 6]}"
        for i in range(100)
    ]


@pytest.fixture(scope="session")
def wordpiece(reviews):
    """A WordPiece tokenizer like BERT's, with [CLS] and [SEP] around each text; some words are several tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=110, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(reviews, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=48,
        **{f"{name}_token": token for name, token in zip(["pad", "unk", "cls", "sep", "mask"], special, strict=True)},
    )


def _random(model: Any, seed: int) -> Any:
    """Default weights are so small that mistakes would drown in rounding."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def _saved(model: Any, tokenizer: Any, folder: Any) -> Local:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Local(model, tokenizer, str(folder))


@pytest.fixture(scope="session")
def classifier(wordpiece, reviews, tmp_path_factory) -> Local:
    """A random BERT of 3 layers, width 16, 3 classes, context 48; read-only."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(wordpiece), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=48, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    model = _random(BertForSequenceClassification(config), 1)
    ids = [torch.tensor([wordpiece(text)["input_ids"]]) for text in reviews]
    with torch.no_grad():  # so that every class is some text's
        model.classifier.bias -= torch.cat([model(each).logits for each in ids]).median(0).values
    return _saved(model, wordpiece, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def byte_level(reviews):
    """GPT-2's kind of tokenizer: byte-level BPE with GPT-2's own pre-tokenizer, and no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(reviews, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, bos_token=end, eos_token=end, unk_token=end
    )


@pytest.fixture(scope="session")
def causal(byte_level, tmp_path_factory) -> Local:
    """A random GPT-2 of 3 layers, width 16, context 64; read-only."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(byte_level), n_positions=64, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = _random(GPT2LMHeadModel(config), 2)
    return _saved(model, byte_level, tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="session")
def decoder_classifier(byte_level, tmp_path_factory) -> Local:
    """A random GPT-2 with a head for 3 classes on the last token, without padding id; read-only."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=len(byte_level), n_positions=64, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0,
        num_labels=3,
    )  # fmt: skip
    model = _random(GPT2ForSequenceClassification(config), 13)  # texts of two classes
    return _saved(model, byte_level, tmp_path_factory.mktemp("decoder_classifier"))


@pytest.fixture(scope="session")
def bundled():
    """The language model inside the package."""
    from saescope.models import LanguageModel

    return LanguageModel.load("bundled")
