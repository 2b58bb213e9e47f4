"""Spans of concepts: runs of tokens that have one, in the parts into which documents are dealt.

A span is a run of tokens with the concept that follow each other in the text of one document.

T  tokens, C  concepts, D  documents, N  tokens with a concept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from saescope.evaluation.sample import TokenLabels, TokenSample


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPart:
    """Some of a sample's documents with their concepts."""

    tokens: np.ndarray  # places in the sample, int64, [T]
    labels: np.ndarray  # bool, [T, C]
    document: np.ndarray  # numbered from 0, int64, [T]
    after: np.ndarray  # whether each token comes right after the one before it, bool, [T]
    whole_spans: bool  # False: each token with a concept counts as a span of its own

    @classmethod
    def of(cls, sample: TokenSample, labels: TokenLabels, part: np.ndarray, *, whole_spans: bool) -> LabelledPart:
        """The tokens of ``sample`` where ``part`` (bool, one a token) is true."""
        tokens = np.flatnonzero(part)
        document = sample.document[tokens]
        return cls(
            tokens=tokens,
            labels=labels.values[tokens],
            document=np.unique(document, return_inverse=True)[1],
            after=follows(document, sample.position[tokens]),
            whole_spans=whole_spans,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def spans(self, concept: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the tokens with a concept in this part, and the number of each one's span; both int64 ``[N]``."""
        tokens, span = spans(self.labels[:, concept], self.after)
        return tokens, span if self.whole_spans else np.arange(len(tokens))

    def num_spans(self, concept: int) -> int:
        span = self.spans(concept)[1]
        return int(span[-1]) + 1 if len(span) else 0

    def shuffled(self, generator: np.random.Generator) -> LabelledPart:
        """The same tokens, with the spans of every concept laid down anew."""
        moved = [laid_down_anew(column, self.after, generator) for column in self.labels.T]
        return replace(self, labels=np.stack(moved, axis=1) if moved else self.labels)

    def sums(self, concept: int, fires: np.ndarray) -> np.ndarray:
        """Of what fires on ``[T]`` of the tokens: firings, hits, spans found, and spans, of each document; ``[D, 4]``."""
        tokens, span = self.spans(concept)
        first = np.flatnonzero(np.diff(span, prepend=-1))
        found = np.logical_or.reduceat(fires[tokens], first) if len(first) else np.zeros(0, dtype=bool)
        of_span = self.document[tokens[first]]
        counted = (self.document[fires], self.document[fires & self.labels[:, concept]], of_span[found], of_span)
        num_documents = int(self.document.max()) + 1
        return np.stack([np.bincount(which, minlength=num_documents) for which in counted], axis=-1)


def follows(document: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Whether each token comes right after the one before it, in the same document; bool ``[T]``."""
    after = np.zeros(len(document), dtype=bool)
    after[1:] = (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1)
    return after


def spans(concept: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of true tokens: places of the true tokens, and the number of each one's span; both int64 ``[N]``.

    Args:
        concept: bool ``[T]``.
        after: what :func:`follows` gives; a span ends where the text is interrupted.
    """
    inside = np.zeros(len(concept), dtype=bool)
    inside[1:] = concept[1:] & concept[:-1] & after[1:]
    tokens = np.flatnonzero(concept)
    return tokens, np.cumsum(~inside[tokens]) - 1


def laid_down_anew(concept: np.ndarray, after: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same runs of true tokens at random places: a concept as frequent and as coarse that means nothing.

    Single tokens dealt out anew would be no fair control for spans, which one firing finds whole. A run that falls on the
    end of a document is cut in two there; two that meet become one.
    """
    tokens, span = spans(concept, after)
    if not len(tokens):
        return concept.copy()
    lengths = generator.permutation(np.bincount(span))
    num_false = len(concept) - len(tokens)
    # each run goes in front of one of the false tokens, or at the end; apart where there is room
    slots = generator.choice(num_false + 1, size=len(lengths), replace=len(lengths) > num_false + 1)
    first = np.sort(slots) + np.cumsum(lengths) - lengths
    moved = np.zeros(len(concept), dtype=bool)
    moved[np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(len(tokens))] = True
    return moved
