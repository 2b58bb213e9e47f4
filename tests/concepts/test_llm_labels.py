"""Labels by a language model: what it is shown, what is made of its answers, and a client against a small server."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from saescope.concepts.interpretations import LabelScore, LLMLabels, OpenAILLM, Role, SamplingMethod
from saescope.concepts.interpretations.prompts import JUDGE, LABEL_ALONE, LABEL_IN_CONTEXT, read_choice, read_label
from saescope.concepts.splitting import ActivationGranularity as Of
from saescope.concepts.splitting import ModelWithSplitPoints

POINT = "transformer.h.0"
TEXTS = [f"def {name}(x):\n    return {name}" for name in ("alpha", "beta", "gamma", "delta", "zeta", "eta")]
OTHERS = [f"x = {name} + 1\n    return y" for name in ("iota", "mu", "theta", "kappa", "alpha", "omega")]


class Concepts:
    """Stands for an explainer whose concept activations are given."""

    is_fitted = True
    device = torch.device("cpu")

    def __init__(self, model, num_concepts=4):
        self.model_with_split_points, self.split_point, self.num = model, POINT, num_concepts

    def encode_activations(self, a):
        return a[:, : self.num].relu()

    def get_dictionary(self):
        return torch.zeros(self.num, 16)


class Client:
    """Answers with a function of the prompt, and keeps what it was asked."""

    def __init__(self, answer=lambda prompt: "a label"):
        self.answer, self.prompts = answer, []

    def generate(self, prompt):
        self.prompts.append(prompt)
        return self.answer(prompt)


@pytest.fixture(scope="module")
def decoder(tiny):
    return ModelWithSplitPoints(tiny.module, [POINT], tokenizer=tiny.tokenizer, batch_size=3)


def tokens_of(decoder, texts):
    return [text for each in decoder.selection(texts, Of.TOKEN).unit_texts for text in each]


def planted(decoder, texts, num_concepts=4):
    """Concept 0: active on ``return``. 1: nowhere. 2: on ``def`` weakly and ``return`` strongly. 3: everywhere, rising."""
    units = tokens_of(decoder, texts)
    codes = torch.zeros(len(units), num_concepts)
    for row, unit in enumerate(units):
        if "return" in unit:
            codes[row, 0], codes[row, 2] = 2.0 + row / 100, 4.0
        if "def" in unit:
            codes[row, 2] = 1.0
        codes[row, 3] = 1 + row
    return units, codes


def shown(prompt):
    """{example: strength} and the order."""
    assert [role for role, _ in prompt] == [Role.SYSTEM, Role.USER]
    pairs = [line.split(": ", 1) for line in prompt[1][1].splitlines()]
    return [(text, int(strength)) for strength, text in pairs]


def test_labels_of_planted_concepts(decoder):
    client = Client(lambda prompt: f' "{shown(prompt)[0][0].strip()}" \nmore')
    concepts = Concepts(decoder)
    units, codes = planted(decoder, TEXTS)
    method = LLMLabels(concept_explainer=concepts, llm_interface=client, activation_granularity=Of.TOKEN)
    labels = method.interpret("all", inputs=TEXTS, concepts_activations=codes)
    assert labels == {0: "return", 1: None, 2: "return", 3: units[-1].strip()}
    assert len(client.prompts) == 3  # the dead concept is not asked about
    assert client.prompts[0][0] == (Role.SYSTEM, LABEL_ALONE)
    assert shown(client.prompts[0]) == [(" return", 10)]  # equal texts are one example
    assert shown(client.prompts[1]) == [(" return", 10), ("def", 2)]  # 10 * 1 / 4 = 2.5, to even
    every = shown(client.prompts[2])
    distinct = len(set(units))
    assert len(every) == min(30, distinct)
    best = {unit: row for row, unit in enumerate(units)}
    order = sorted(best, key=lambda unit: -best[unit])[:30]
    assert every == [(unit.replace("\n", "\\n"), round(10 * (1 + best[unit]) / len(units))) for unit in order]
    assert method.interpret(1, inputs=TEXTS, concepts_activations=codes) == {1: None}
    some = LLMLabels(concept_explainer=concepts, llm_interface=client).interpret(
        [3, 0], inputs=TEXTS, concepts_activations=codes
    )
    assert list(some.items()) == [(3, labels[3]), (0, labels[0])]


def test_context_and_marks(decoder):
    client = Client()
    _, codes = planted(decoder, TEXTS)
    method = LLMLabels(concept_explainer=Concepts(decoder), llm_interface=client, k_context=2, k_examples=3)
    method.interpret(0, inputs=TEXTS, concepts_activations=codes)
    (prompt,) = client.prompts
    assert prompt[0] == (Role.SYSTEM, LABEL_IN_CONTEXT)
    examples = shown(prompt)
    assert len(examples) == 3
    selection = decoder.selection(TEXTS, Of.TOKEN)
    for text, strength in examples:
        assert strength in (9, 10)
        before, rest = text.split("<<")
        piece, after = rest.split(">>")
        assert piece == " return"
        expected = set()
        for units in selection.unit_texts:
            place = units.index(" return")
            expected.add(("".join(units[place - 2 : place]), "".join(units[place + 1 : place + 3])))
        assert (before.replace("\\n", "\n"), after) in expected
    with pytest.warns(UserWarning, match="stand alone"):
        alone = LLMLabels(
            concept_explainer=Concepts(decoder), llm_interface=client, k_context=2, activation_granularity=Of.SAMPLE
        )
    assert alone.k_context == 0
    assert alone.system_prompt == LABEL_ALONE


def test_from_texts_and_latent_activations(decoder):
    client = Client()
    concepts = Concepts(decoder)
    latent = decoder.get_activations(TEXTS, Of.WORD)
    settings = {"concept_explainer": concepts, "llm_interface": client, "activation_granularity": Of.WORD}
    for given in ({}, {"latent_activations": latent}, {"concepts_activations": latent[POINT][:, :4].relu()}):
        LLMLabels(**settings).interpret("all", inputs=TEXTS, **given)
    first, *others = (client.prompts[i : i + 4] for i in (0, 4, 8))
    assert first == others[0] == others[1]
    client.prompts.clear()
    LLMLabels(**{**settings, "system_prompt": "be brief"}, use_unique_words=True).interpret([0], inputs=TEXTS)
    assert client.prompts[0][0] == (Role.SYSTEM, "be brief")
    assert {text for text, _ in shown(client.prompts[0])} <= {
        "def",
        "return",
        "x",
        *["alpha", "beta", "gamma", "delta", "zeta", "eta"],
    }


def test_sampling():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    order = np.argsort(-values)
    top = SamplingMethod.TOP.choose(values, 10)
    assert top.tolist() == order[:10].tolist()
    drawn = SamplingMethod.RANDOM.choose(values, 10, seed=1)
    assert len(set(drawn.tolist())) == 10
    assert sorted(-values[drawn]) == list(-values[drawn])  # the largest first
    assert drawn.tolist() == SamplingMethod.RANDOM.choose(values, 10, seed=1).tolist()
    assert drawn.tolist() != SamplingMethod.RANDOM.choose(values, 10, seed=2).tolist()
    assert min(values[drawn]) < 60
    spread = values[SamplingMethod.QUANTILE.choose(values, 12, num_slices=5)]
    per_slice = [sum(20 * (4 - s) < v <= 20 * (5 - s) for v in spread) for s in range(5)]
    assert per_slice == [4, 2, 2, 2, 2]  # the rest from the highest
    for method in SamplingMethod:
        assert sorted(method.choose(values[:7], 10).tolist()) == list(range(7))
        assert method.choose(values[:0], 10).tolist() == []
    # each has the same chance
    counts = np.zeros(20)
    for seed in range(2000):
        counts[SamplingMethod.RANDOM.choose(np.ones(20), 5, seed=seed)] += 1
    assert abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_quantiles_of_a_concept(decoder):
    client = Client()
    _, codes = planted(decoder, TEXTS)
    method = LLMLabels(
        concept_explainer=Concepts(decoder), llm_interface=client, sampling_method=LLMLabels.sampling_methods.QUANTILE,
        k_examples=4, k_quantile=4, k_context=1,
    )  # fmt: skip
    method.interpret(3, inputs=TEXTS, concepts_activations=codes)
    strengths = [strength for _, strength in shown(client.prompts[0])]
    assert len(strengths) == 4
    assert all(10 * (3 - i) / 4 - 0.5 <= s <= 10 * (4 - i) / 4 + 0.5 for i, s in enumerate(strengths))


def test_answers_are_asked_for_once(decoder, tmp_path):
    _, codes = planted(decoder, TEXTS)
    client = Client()
    settings = {"concept_explainer": Concepts(decoder), "llm_interface": client, "cache": tmp_path / "answers"}
    method = LLMLabels(**settings)
    first = method.interpret("all", inputs=TEXTS, concepts_activations=codes)
    assert method.interpret("all", inputs=TEXTS, concepts_activations=codes) == first
    assert LLMLabels(**settings).interpret("all", inputs=TEXTS, concepts_activations=codes) == first
    assert len(client.prompts) == 3
    files = list((tmp_path / "answers").iterdir())
    assert len(files) == 3
    assert all(file.read_text() == "a label" for file in files)
    # another client, another prompt: asked anew
    client.model = "another"
    LLMLabels(**settings).interpret("all", inputs=TEXTS, concepts_activations=codes)
    assert len(client.prompts) == 6
    LLMLabels(**settings, k_examples=1).interpret(3, inputs=TEXTS, concepts_activations=codes)
    assert len(client.prompts) == 7
    # no answer is not kept
    client.answer = lambda prompt: None
    silent = LLMLabels(concept_explainer=Concepts(decoder), llm_interface=client)
    for _ in range(2):
        assert silent.interpret(0, inputs=TEXTS, concepts_activations=codes) == {0: None}
    assert len(client.prompts) == 9
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        LLMLabels(**{**settings, "cache": tmp_path / "file"})


def truthful(word):
    """A judge who finds a word in the examples; and gives a label when asked for one."""

    def answer(prompt):
        if prompt[0][1] != JUDGE:
            return word
        found = [line.split(". ")[0] for line in prompt[1][1].splitlines()[2:] if word in line]
        return ", ".join(found) or "none"

    return answer


def test_labels_are_scored_on_examples_that_made_none(decoder):
    concepts = Concepts(decoder)
    client = Client(truthful("return"))
    method = LLMLabels(concept_explainer=concepts, llm_interface=client, k_context=3, k_examples=2)
    _, codes = planted(decoder, TEXTS)
    labels = method.interpret([0, 1, 2], inputs=TEXTS, concepts_activations=codes)
    used = {text for prompt in client.prompts[:1] for text, _ in shown(prompt)}
    client.prompts.clear()
    scores = method.score(labels, inputs=TEXTS, concepts_activations=codes, num_examples=8)
    assert scores[1] is None
    judged = client.prompts[0][1][1].splitlines()
    assert judged[0] == "Label: return"
    examples = [line.split(". ", 1)[1] for line in judged[2:]]
    assert len(examples) == len(set(examples)) == 8
    assert not used & set(examples)
    marked = ["<< return>>" in example for example in examples]
    assert sum(marked) == 4
    assert marked != sorted(marked, reverse=True)  # in random order
    # the judge looks for the word anywhere in an example, marks or not
    by_word = ["return" in example for example in examples]
    mistaken = sum(word and not mark for word, mark in zip(by_word, marked, strict=True))
    assert scores[0] == LabelScore(num_active=4, num_silent=4, num_found=4, num_mistaken=mistaken)
    assert scores[0].balanced_accuracy == (1 + (4 - mistaken) / 4) / 2

    # without anything held out there is no score
    alone = LLMLabels(concept_explainer=concepts, llm_interface=client)
    labels = alone.interpret([0], inputs=TEXTS, concepts_activations=codes)
    assert alone.score(labels, inputs=TEXTS, concepts_activations=codes) == {0: None}
    # a text that is active somewhere is not shown as silent
    mixed = codes.clone()
    rows = [row for row, unit in enumerate(tokens_of(decoder, TEXTS)) if "return" in unit]
    mixed[rows[1:], 0] = 0
    client.prompts.clear()
    LLMLabels(concept_explainer=concepts, llm_interface=client).score(
        {0: "x"}, inputs=TEXTS, concepts_activations=mixed
    )
    assert client.prompts[0][1][1].splitlines()[0] == "Label: x"
    assert len(client.prompts[0][1][1].splitlines()) == 2 + 2  # one of each kind
    client.prompts.clear()
    # a right label on other texts; a wrong one
    _, other_codes = planted(decoder, OTHERS)
    fresh = LLMLabels(concept_explainer=concepts, llm_interface=client)
    score = fresh.score({0: "return"}, inputs=OTHERS, concepts_activations=other_codes)[0]
    assert score.balanced_accuracy == 1
    client.answer = truthful("iota")
    assert fresh.score({0: "wrong"}, inputs=OTHERS, concepts_activations=other_codes)[0].balanced_accuracy <= 0.5
    client.answer = lambda prompt: "I can not tell"
    assert fresh.score({0: "odd"}, inputs=OTHERS, concepts_activations=other_codes) == {0: None}


def test_a_score_by_hand():
    score = LabelScore(num_active=4, num_silent=10, num_found=3, num_mistaken=1)
    assert score.balanced_accuracy == pytest.approx((0.75 + 0.9) / 2)
    guess = LabelScore(num_active=7, num_silent=3, num_found=7, num_mistaken=3)  # all named
    assert guess.balanced_accuracy == 0.5


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("import lines", "import lines"), ('\n "import lines".\n', 'import lines".'), ("**Label: “loops”**", "loops"),
        ("label: names", "names"), ("", None), ("  \n ", None), (None, None), ("'quoted'", "quoted"),
    ],
)  # fmt: skip
def test_answers_are_read(answer, label):
    assert read_label(answer) == label


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ("1, 3", {0, 2}), ("none", set()), ("None.", set()), ("Examples 2 and 4", {1, 3}), ("5", None), ("0", None),
        ("?", None), (None, None), ("2, 2", {1}),
    ],
)  # fmt: skip
def test_choices_are_read(answer, places):
    assert read_choice(answer, 4) == places


def test_mistakes_are_said_in_words(decoder):
    settings = {"concept_explainer": Concepts(decoder), "llm_interface": Client()}
    for wrong, words in (
        ({"llm_interface": "gpt"}, "generate"),
        ({"k_examples": 0}, "k_examples"),
        ({"k_context": -1}, "k_context"),
        ({"k_examples": 3, "sampling_method": SamplingMethod.QUANTILE}, "spread over 5"),
        ({"sampling_method": "some"}, "some"),
        ({"activation_granularity": Of.ALL_TOKENS}, "ALL_TOKENS"),
    ):
        with pytest.raises(ValueError, match=words):
            LLMLabels(**{**settings, **wrong})
    method = LLMLabels(**settings)
    with pytest.raises(ValueError, match="no inputs"):
        method.interpret(0)
    with pytest.raises(ValueError, match="concepts"):
        method.interpret(9, inputs=TEXTS)
    with pytest.raises(ValueError, match="2 examples"):
        method.score({0: "x"}, inputs=TEXTS, num_examples=1)


class Service:
    """A chat service on this machine that answers with what it is told to."""

    def __init__(self):
        self.requests, self.replies = [], []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append((self.path, self.headers["Authorization"], body))
                status, text = service.replies.pop(0)
                message = {"role": "assistant", "content": text}
                answer = {
                    "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                }  # fmt: skip
                data = json.dumps(answer if status == 200 else {"error": {"message": text}}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def service():
    made = Service()
    yield made
    made.stop()


def test_a_service_is_asked(service, decoder):
    client = OpenAILLM("a-key", model="small", base_url=service.address, max_tokens=9)
    service.replies = [(200, "import lines"), (200, None)]
    prompt = [(Role.SYSTEM, "be brief"), (Role.USER, "what is this?")]
    assert client.generate(prompt) == "import lines"
    assert client.generate(prompt) is None
    path, key, body = service.requests[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer a-key")
    assert body == {
        "model": "small", "temperature": 0.0, "max_tokens": 9,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is this?"}],
    }  # fmt: skip
    service.replies = [(200, "return statements")]
    _, codes = planted(decoder, TEXTS)
    method = LLMLabels(concept_explainer=Concepts(decoder), llm_interface=client)
    assert method.interpret(0, inputs=TEXTS, concepts_activations=codes) == {0: "return statements"}
    assert service.requests[-1][2]["messages"][1]["content"] == "10:  return"
    assert "a-key" not in client.identity


def test_a_service_that_fails(service):
    client = OpenAILLM("a-key", base_url=service.address, num_try=1)
    service.replies = [(500, "broken"), (401, "wrong key"), (404, "no such model")]
    with pytest.warns(UserWarning, match="gave no answer"):
        assert client.generate([(Role.USER, "?")]) is None
    for words in ("wrong key", "no such model"):
        with pytest.raises(ValueError, match=words):
            client.generate([(Role.USER, "?")])
    assert len(service.requests) == 3


def test_a_service_that_is_not_there(service, monkeypatch):
    gone = OpenAILLM("a-key", base_url="http://127.0.0.1:9/v1", num_try=1, timeout=2)
    with pytest.warns(UserWarning, match="gave no answer"):
        assert gone.generate([(Role.USER, "?")]) is None
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        OpenAILLM()
