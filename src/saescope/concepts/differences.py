"""Where concepts here differ from interpreto 0.4.11 to 0.4.16, whose names they have: the table of ``docs/concepts.md``.

Each room keeps its own rows; those of gradients and interpretations are here. ``python -m saescope.concepts.differences``
prints the whole table.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One difference."""

    subject: str
    there: str
    here: str


OF_GRADIENTS = (
    Row(
        "what the concepts leave out",
        "is lost: gradients are taken at the reconstruction, where the model does something else",
        "error_term=True keeps it as a constant, and logits are those of the plain model; off by default, as there",
    ),
    Row(
        "targets of models with logits at each token",
        "positions in the padded batch, so that a number means other tokens in other batches; the largest logit there",
        "pairs (position from the end, token id), or a function of the logits; None is the largest logit at each of the "
        "text's own positions. padded_positions=True has the original's meaning",
    ),
    Row(
        "a target without any gradient, normalised",
        "0/0, NaN",
        "zeros. The sum is over units and concepts, for each text and target",
    ),
    Row(
        "padding side and batch-mates",
        "the side that the tokenizer had last, so that an earlier call decides; results depend on the batch",
        "results are those of each text alone; nothing of the tokenizer is changed",
    ),
    Row(
        "split_point=None where there are several",
        "an error",
        "the explainer's own",
    ),
    Row(
        "cost",
        "one backward pass for each target",
        "targets go back together where memory and the model's operations allow it; the results are the same",
    ),
    Row(
        "device of the concept model",
        "moved to the model's",
        "stays where it is; activations go there and back",
    ),
)

OF_INTERPRETATIONS = (
    Row(
        "TopKInputs: place of a hit",
        "lost: a text and a number",
        "interpret gives the same; hits gives text, activation, number of the text, position and what stands around it",
    ),
    Row(
        "TopKInputs: memory",
        "the whole matrix [ng, c]",
        "k texts for each concept and concept_encoding_batch_size rows; sparse concept activations are taken too",
    ),
    Row(
        "TopKInputs: negative activations",
        "ranked like the others, so that -1 is a hit where nothing is larger",
        "only positive ones count; with signed=True all do, by size",
    ),
    Row(
        "TopKInputs: k larger than what there is",
        "0.5 raises",
        "fewer texts",
    ),
    Row(
        "texts of tokens",
        "entries of the vocabulary, such as Ġreturn",
        "what they stand for, with the space before them",
    ),
    Row(
        "use_vocab",
        "special tokens are among them; at CLS_TOKEN a template of 3 ids is assumed",
        "special tokens are left out; at CLS_TOKEN a token stands within what the tokenizer puts around a text",
    ),
    Row(
        "use_unique_words",
        "nltk's words, with punctuation; lemmatize; in 0.5 also runs of n words",
        "runs of letters, digits and underscores, one by one; lemmatize is refused, as it takes a dictionary of each "
        "language",
    ),
    Row(
        "LLMLabels: a concept that is nowhere active",
        "an empty prompt is sent, and the reply kept",
        "None; nothing is sent",
    ),
    Row(
        "LLMLabels: score",
        "none",
        "score judges labels on examples that they were not made from (detection)",
    ),
    Row(
        "LLMLabels: the same question again",
        "is sent again",
        "answers are kept by the hash of the prompt, with cache= also on disk",
    ),
    Row(
        "LLMLabels: examples",
        "units with any activation but 0, equal texts as often as they occur; random ones differ between runs",
        "units with a positive one; without context each text once, with its largest; drawn with a seed",
    ),
    Row(
        "LLMLabels: strengths from 0 to 10",
        "in parts of the largest activation",
        "the same, also where the largest is not among the examples",
    ),
    Row(
        "LLMLabels: the reply",
        "is the label as it is; prompts end with an empty turn of the assistant",
        "its first line without quotes; prompts end with the question",
    ),
    Row(
        "OpenAILLM",
        "any failure is None",
        "None, with a warning, while the service fails; a refused key, model or field is an error. base_url for others",
    ),
)


def rows() -> list[Row]:
    """Of all rooms: splitting, explainers, gradients, interpretations."""
    from saescope.concepts.explainers.differences import DIFFERENCES as OF_EXPLAINERS
    from saescope.concepts.splitting.differences import DIFFERENCES as OF_SPLITTING

    splitting = [Row(each.subject, each.there, each.here) for each in OF_SPLITTING]
    explainers = [Row(each.subject, each.there, each.here) for each in OF_EXPLAINERS]
    return [*splitting, *explainers, *OF_GRADIENTS, *OF_INTERPRETATIONS]


def table() -> str:
    """As Markdown."""
    lines = ["| | interpreto 0.4 | here |", "|---|---|---|"]
    for row in rows():
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
