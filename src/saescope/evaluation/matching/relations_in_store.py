"""Relations of a dictionary's features to another dictionary, as tags, notes and numbers in the store.

Tags are there to filter by ("new against NAME"), a note says which feature of the other dictionary is meant, and the
counts are evaluations of the study ``relations``. Writing again for the same two dictionaries takes away what was written
before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import delete, func

from saescope import __version__
from saescope.evaluation.matching.relations import Relations
from saescope.store import EvaluationResult, Note, Store, tables
from saescope.store.bulk import insert_rows
from saescope.store.evaluations import add_evaluations
from saescope.store.finding import find_dictionary
from saescope.store.rows import note_row

AUTHOR = "saescope match"


def tags_against(name: str) -> dict[str, str]:
    """The tag of each kind of feature, against the dictionary called ``name``; dead features get none."""
    return {
        "shared": f"shared with {name}",
        "split": f"split from {name}",
        "absorbed": f"absorbs from {name}",
        "near": f"near {name}",
        "new": f"new against {name}",
    }


def write_relations(store: Store, name: str | None, found: Relations, *, against: str) -> None:
    """Write what the features of the dictionary called ``name`` in the store are to the one called ``against``.

    All of it or nothing; what was written before for the same two is replaced. Of what people added nothing is touched, but
    for tags of just these names. A feature that is shared or split and absorbs as well has both tags.

    Raises:
        ValueError: the store has no such dictionary, or one of another size; an empty ``against``.
    """
    if not against.strip():
        raise ValueError("the dictionary that was compared with needs a name, got an empty one")
    tags, beginning = tags_against(against.strip()), f"against {against.strip()}: "
    variant = f"against {against.strip()}"
    study = found.study()
    details = {
        "bar": found.bar,
        "part_bar": found.part_bar,
        "with_codes": found.with_codes,
        "settings": vars(found.config),
        "notes": list(study.notes),
    }
    results = [
        EvaluationResult(
            study=study.study,
            metric=number.name,
            value=number.value,
            variant=variant,
            code_version=__version__,
            details=details | ({"reason": number.reason} if number.reason else {}),
        )
        for number in study.numbers
    ]
    with store._writing() as connection:  # one transaction for what Store writes in several
        dictionary_id, dictionary = find_dictionary(connection, name)
        if dictionary.d_sae != len(found.kinds):
            raise ValueError(
                f"{dictionary.name!r} has {dictionary.d_sae} features in the store, and {len(found.kinds)} were compared"
            )
        tag, note, evaluation = tables.tag, tables.note, tables.evaluation
        connection.execute(delete(tag).where(tag.c.dictionary_id == dictionary_id, tag.c.name.in_(list(tags.values()))))
        connection.execute(
            delete(note).where(
                note.c.dictionary_id == dictionary_id,
                note.c.author == AUTHOR,
                func.substr(note.c.text, 1, len(beginning)) == beginning,
            )
        )
        connection.execute(
            delete(evaluation).where(
                evaluation.c.dictionary_id == dictionary_id,
                evaluation.c.study == study.study,
                evaluation.c.variant == variant,
            )
        )
        insert_rows(
            connection,
            tag,
            ((dictionary_id, b, tags[kind]) for b, kind in tagged(found)),
            ["dictionary_id", "feature_index", "name"],
        )
        rows = [
            (b, note_row(Note(text=beginning + text, author=AUTHOR))) for b, text in sorted(notes_of(found).items())
        ]
        columns = ["text", "author", "created_at"]
        insert_rows(
            connection,
            note,
            ((dictionary_id, b, *(row[column] for column in columns)) for b, row in rows),
            ["dictionary_id", "feature_index", *columns],
        )
        add_evaluations(connection, dictionary_id, results)


def tagged(found: Relations) -> Iterator[tuple[int, str]]:
    """Features of B that get a tag, with the kind that it says; features that absorb in two ways have two."""
    absorbing = {absorption.feature for absorption in found.absorptions}
    for b, kind in enumerate(found.kinds.tolist()):
        if kind != "dead":
            yield b, kind
        if b in absorbing and kind != "absorbed":
            yield b, "absorbed"


def notes_of(found: Relations) -> dict[int, str]:
    """What there is to say of a feature beside its tag: which features are meant."""
    words: dict[int, list[str]] = defaultdict(list)
    for b, (kind, a, cosine) in enumerate(zip(found.kinds, found.nearest, found.cosines, strict=True)):
        if kind == "shared":
            words[b].append(f"shared with feature {a} (cosine {cosine:.3f})")
        elif kind == "near":
            words[b].append(f"near feature {a} (cosine {cosine:.3f}), which another feature is nearer to")
    for split in found.splits:
        for part in split.parts:
            others = ", ".join(str(other) for other in split.parts if other != part)
            words[part].append(f"part of feature {split.feature}, with {others}")
    for absorption in found.absorptions:
        words[absorption.feature].append(
            f"absorbs feature {absorption.of}: {absorption.match} is silent on {absorption.silent:.0%} of "
            f"{absorption.num_tokens} tokens"
        )
    return {b: "; ".join(parts) for b, parts in words.items()}
