"""Where splitting a model differs from interpreto 0.4, whose names it has, and why. The documentation quotes this table."""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """One difference."""

    subject: str
    there: str
    """What interpreto 0.4.11 to 0.4.16 does."""
    here: str


DIFFERENCES = (
    Difference(
        "the user's model and tokenizer",
        "padding side and padding token of the tokenizer are changed, and the model's embeddings are resized for a new "
        "padding token",
        "both stay as they were: texts are padded outside the tokenizer, with an id that the model has",
    ),
    Difference(
        "tokenizer output as input",
        "batched over the number of its keys, so that most texts are lost; TOKEN, WORD and SENTENCE refuse the batches",
        "batched over its rows; every granularity takes it, plain mappings with input_ids included",
    ),
    Difference(
        "SENTENCE",
        "special tokens and padding enter the first sentence; offsets in the raw text are compared with sentences of the "
        "decoded text; needs spaCy and a pipeline",
        "neither is in any sentence; the raw text is cut by a rule (`sentences.py`), no other package is needed",
    ),
    Difference(
        "ALL_TOKENS",
        "returns rows for padding",
        "returns a row for each token of the attention mask; padding with include_padding=True",
    ),
    Difference(
        "CLS_TOKEN",
        "checks the first text alone, and takes column 0",
        "checks every text, and takes each text's first token, on whichever side padding stands",
    ),
    Difference(
        "WORD",
        "a tokenizer that numbers a whole text as one word (Llama 2) gives one word per text",
        "words are then told by the marks of spaces",
    ),
    Difference(
        "an unknown word",
        "is in words and sentences, not in TOKEN and SAMPLE",
        "the same, and said; where unknown words share an id with the end of text, that id is no text",
    ),
    Difference(
        "SIGNED_MAX",
        "of x and -x either may be taken",
        "the first is",
    ),
    Difference(
        "activation_granularity",
        "documented as TOKEN by default, but required",
        "TOKEN by default",
    ),
    Difference(
        "pad_side",
        "by force right for classification and left for causal models; left for others",
        "an argument is honoured where the model can count positions from each text's first token, so that results do not "
        "depend on it (not by BART: right); by default left for causal models, right for others",
    ),
    Difference(
        "where activations are",
        "on the model's device, in its dtype; all of the model runs",
        "on the CPU, float64 or else float32; the model stops after the last split point",
    ),
    Difference(
        "order of split points",
        "the order in which modules are listed",
        "the order in which they give their output",
    ),
    Difference(
        "output_tuple_index",
        "found once, for all split points",
        "found for each split point; an argument holds for all",
    ),
    Difference(
        "a text without tokens",
        "NaN, or an error of the model",
        "refused with its number",
    ),
    Difference(
        "token types",
        "passed to every model that takes them (GPT-2 adds the embedding of word 0 to every token)",
        "passed to models with an embedding for them",
    ),
    Difference(
        "a classification model without padding id, in batches",
        "an error of transformers",
        "runs; logits are those of each text alone",
    ),
    Difference(
        "tqdm_bar",
        "a bar of tqdm",
        "a bar of rich",
    ),
)
"""Subject, there, here."""
