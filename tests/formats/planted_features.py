"""The records of a small analysed dictionary that has everything that a page can have."""

from __future__ import annotations

from types import SimpleNamespace

from saescope.store.records import (
    AnalysisRecord,
    Band,
    DictionaryRecord,
    Example,
    Explanation,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    TokenLogit,
    Window,
)

NUM_TOKENS = 30_011
EMOJI = Window(
    id=5,
    document="chat.txt",
    offset=7,
    text="x \N{SMILING FACE WITH OPEN MOUTH}é\x00\\u0000\nend",
    token_ids=(9, 8, 7, 6, 5, 4),
    # the second, third and fourth token share the smile
    token_ranges=((0, 2), (2, 3), (2, 3), (2, 4), (4, 12), (12, 15)),
)


def _windows() -> list[Window]:
    plain = [
        Window.of_texts(
            id=number,
            document=f"doc{number % 4}.py",
            offset=16 * number,
            token_ids=range(10 * number, 10 * number + 6),
            token_texts=["def", f" f{number}", "(", "x", ")", ":\n"],
        )
        for number in range(5)
    ]
    return [*plain, EMOJI]


def _feature(index: int) -> Feature:
    if index == 3:  # one that never fires
        return Feature(
            record=FeatureRecord(
                index=3, num_firings=0, density=0.0, max_activation=0.0, mean_activation=0.0, std_activation=0.0,
                mean_positive=0.0, median_positive=0.0,
            )
        )  # fmt: skip
    num_firings = 40 * (index + 1)
    counts = (num_firings - 12, 8, 4)
    top = 8.0 + index
    bands = tuple(
        Band(
            kind=kind,
            number=number,
            low=top * number / 3,
            high=top * (number + 1) / 3 if number < 2 else top * 1.01,
            num_windows=10 - number,
            num_tokens=counts[number],
            share=counts[number] / num_firings,
        )
        for kind in ("quantile", "width")
        for number in range(3)
    )
    label = Label(
        text=f"words like f{index}", kind="tokens", precision=0.1 + 0.2, lift=12.5, recall=None, num_firings=17
    )
    return Feature(
        record=FeatureRecord(
            index=index,
            num_firings=num_firings,
            density=num_firings / NUM_TOKENS,
            max_activation=top,
            mean_activation=0.01,
            std_activation=0.2,
            mean_positive=3.0,
            median_positive=2.5,
            map_x=0.1 * index,
            map_y=-1.5,
            cluster=index % 2,
            label=label if index % 2 else None,
        ),
        detail=FeatureDetail(
            histogram=Histogram(edges=(0.0, 6.0, 12.0, 18.0), counts=counts),
            bands=bands,
            top_logits=tuple(TokenLogit(token_id=i, text=f" t{i}", logit=5 - i / 3) for i in range(12)),
            bottom_logits=tuple(TokenLogit(token_id=i, text=f"b{i}", logit=-5 + i / 3) for i in range(12)),
            logit_histogram=Histogram(edges=(-5.0, -1.0, 3.0, 7.0), counts=(100, 200, 20)),
            neighbours={
                "decoder": (Neighbour(feature=(index + 1) % 7, value=0.75), Neighbour(feature=3, value=-0.1)),
                "firing": (Neighbour(feature=0, value=0.5, num_both=3),),
            },
        ),
    )


def _examples(index: int) -> list[Example]:
    if index == 3:
        return []
    top = 8.0 + index
    return [
        Example(feature=index, window_id=5, peak=2, activation=top, positions=(1, 2), values=(0.5, top), top_rank=0,
                quantile_band=2, width_band=2),
        Example(feature=index, window_id=index % 5, peak=3, activation=top - 1, positions=(3,), values=(top - 1,),
                top_rank=1),
        Example(feature=index, window_id=(index + 1) % 5, peak=0, activation=top / 2, positions=(0, 4),
                values=(top / 2, 0.10000000149011612), width_band=1),
        Example(feature=index, window_id=(index + 2) % 5, peak=5, activation=0.25, positions=(5,), values=(0.25,),
                width_band=0, quantile_band=1),
        Example(feature=index, window_id=(index + 3) % 5, peak=0, activation=0.0, positions=(), values=(),
                negative="silent"),
    ]  # fmt: skip


def planted_records() -> SimpleNamespace:
    """Dictionary, analysis, features, windows, examples and explanations."""
    return SimpleNamespace(
        dictionary=DictionaryRecord(
            name="small",
            model="gpt-tiny",
            hook_point="blocks.1.hook_resid_post",
            architecture="topk",
            d_in=4,
            d_sae=7,
            series="tries",
        ),
        analysis=AnalysisRecord(
            name="first",
            dataset="stdlib",
            context_size=6,
            num_tokens=NUM_TOKENS,
            num_windows=5002,
            created_at="2026-03-04T05:06:07+00:00",
        ),
        features=[_feature(index) for index in range(7)],
        windows=_windows(),
        examples=[example for index in range(7) for example in _examples(index)],
        explanations=[
            (0, Explanation(text="greets", method="human", author="ann")),
            (0, Explanation(text="says hello", method="one-shot", author="a-model", score=0.1 + 0.2)),
            (2, Explanation(text="numbers", method="one-shot", author="b-model", details={"tries": [1, None]})),
        ],
    )
