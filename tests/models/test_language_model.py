"""The model as an object: loading, sizes, reading as far as needed, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast, T5Config

from saescope.models import LanguageModel, ModelLoadError, loading


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, 40)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture
def folder(tiny: Any, tokenizer: Any, tmp_path: Path) -> Path:
    tiny("gpt2").module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_sizes(tiny: Any) -> None:
    for kind in ("gpt2", "gptj", "neox", "llama", "gemma2", "gemma3_images", "opt", "bert", "roberta"):
        model = tiny(kind)
        assert (model.d_model, model.vocab_size, model.context_size) == (16, 40, 32), kind
        assert model.is_causal == (kind not in ("bert", "roberta"))
    assert (model.device, model.dtype, model.special_token_ids) == (torch.device("cpu"), torch.float32, frozenset())


def test_the_longest_window_runs_and_a_longer_one_is_refused(tiny: Any) -> None:
    for kind in ("gpt2", "opt", "bert", "roberta"):  # tables of positions, with and without an offset
        model = tiny(kind)
        assert model.logits(torch.full((1, 32), 5)).shape == (1, 32, 40)
        with pytest.raises(ValueError, match=r"33 tokens is longer than the 32"):
            model.logits(torch.full((1, 33), 5))


def test_widths(tiny: Any) -> None:
    assert tiny("gpt2").width("blocks.0.hook_resid_pre") == 16
    assert tiny("gemma2").width("blocks.0.attn.hook_z") == 24
    assert tiny("gemma2").width("blocks.0.hook_attn_out") == 16
    assert tiny("opt").width("model.decoder.layers.0.fc1") == 24
    assert tiny("bert").width("bert.encoder.layer.1.intermediate") == 24


def test_a_read_stops_right_after_the_last_hook_point(tiny: Any, ids: Tensor) -> None:
    model = tiny("llama")
    ran: list[str] = []
    names = ["model.layers.0", "model.layers.1.mlp", "model.layers.1", "model.layers.2", "lm_head"]
    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name in names
    ]
    model.read(ids, ["blocks.1.hook_resid_post", "blocks.0.hook_resid_pre"])
    assert ran == ["model.layers.0", "model.layers.1", "model.layers.1.mlp"]
    ran.clear()
    model.read(ids, ["blocks.1.hook_attn_out"])
    assert ran == ["model.layers.0", "model.layers.1"]
    ran.clear()
    model.read(ids, ["lm_head.input"])
    assert ran[-2:] == ["model.layers.2", "lm_head"]
    for handle in handles:
        handle.remove()


def test_one_forward_pass_serves_all_names(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    passes: list[int] = []
    handle = model.module.transformer.h[0].register_forward_pre_hook(lambda *_: passes.append(1))
    found = model.read(ids, [f"blocks.{i}.hook_resid_post" for i in range(3)] + ["blocks.1.attn.hook_z"] * 2)
    handle.remove()
    assert len(passes) == 1
    assert {value.shape for value in found.values()} == {(2, 7, 16)}
    assert len(found) == 4
    assert not any(value.requires_grad for value in found.values())
    assert model.read(ids, []) == {}


def test_padding_does_not_reach_the_tokens_before_it(tiny: Any, ids: Tensor) -> None:
    name = "blocks.2.hook_normalized_resid_post"
    model = tiny("bert")
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    padded = model.read(ids, [name], attention_mask=mask)[name]
    alone = model.read(ids[1:, :4], [name])[name]
    torch.testing.assert_close(padded[1:, :4], alone)
    assert not torch.allclose(model.read(ids, [name])[name][1:, :4], alone)
    torch.testing.assert_close(model.logits(ids, attention_mask=mask)[1:, :4], model.logits(ids[1:, :4]))


def test_reading_leaves_no_hooks_and_no_graph(tiny: Any, ids: Tensor) -> None:
    model = tiny("qwen2")

    def hooks() -> int:  # transformers may have left collectors of its own
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())

    before, hooks_before = model.logits(ids), hooks()
    assert not before.requires_grad  # the parameters are frozen
    assert not model.module.training
    model.read(ids, ["blocks.0.hook_resid_mid", "blocks.2.hook_mlp_in"])
    assert hooks() == hooks_before
    assert torch.equal(model.logits(ids), before)


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        (torch.tensor([[3, 40]]), None, "token id 40 is not in the vocabulary of tiny-gpt2, 0 to 39"),
        (torch.tensor([[3, -1]]), None, "token id -1 is not"),
        (torch.tensor([3, 4]), None, r"integers \[batch, tokens\]"),
        (torch.tensor([[3.0, 4.0]]), None, r"integers \[batch, tokens\]"),
        (torch.zeros((0, 4), dtype=torch.long), None, r"integers \[batch, tokens\]"),
        (torch.tensor([[3, 4]]), torch.ones(1, 3), r"attention_mask has the shape \(1, 3\)"),
    ],
)
def test_wrong_windows_are_refused(ids: Tensor, mask: Tensor | None, words: str, tiny: Any) -> None:
    with pytest.raises(ValueError, match=words):
        tiny("gpt2").read(ids, ["transformer.h.0"], attention_mask=mask)


def test_one_name_is_not_a_list_of_letters(tiny: Any, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give \['transformer.h.0'\]"):
        tiny("gpt2").read(ids, "transformer.h.0")


def test_masked_models_are_no_next_token_predictors(tiny: Any) -> None:
    tiny("gpt2").require_causal("loss recovered")
    with pytest.raises(
        ValueError, match="loss recovered needs a causal language model; tiny-bert predicts masked tokens"
    ):
        tiny("bert").require_causal("loss recovered")


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "neox", "llama", "qwen3", "gemma2", "gemma3", "gemma3_images", "opt"])
def test_the_unembedding_makes_the_logits(kind: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    parts = model.unembedding()
    x = model.read(ids, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"]
    if parts.norm_kind == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    eps = getattr(model.module.config.get_text_config(), "rms_norm_eps", 1e-5)
    x = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * parts.norm_weight
    logits = (x if parts.norm_bias is None else x + parts.norm_bias) @ parts.weight.T
    logits = logits if parts.bias is None else logits + parts.bias
    cap = getattr(model.module.config, "final_logit_softcapping", None)
    torch.testing.assert_close(cap * torch.tanh(logits / cap) if cap else logits, model.logits(ids))


def test_bert_has_no_linear_way_to_its_logits(tiny: Any) -> None:
    with pytest.raises(ValueError, match="dense layer with an activation"):
        tiny("bert").unembedding()


def test_a_folder_loads_quietly_and_gives_the_same_logits(folder: Path, tiny: Any, ids: Tensor, capfd: Any) -> None:
    model = LanguageModel.load(folder)
    assert capfd.readouterr() == ("", "")
    assert model.name == str(folder)
    assert model.special_token_ids == {0, 1}
    assert torch.equal(model.logits(ids), tiny("gpt2").logits(ids))
    assert LanguageModel.load(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_folder_without_a_tokenizer(tiny: Any, ids: Tensor, tmp_path: Path) -> None:
    tiny("bert").module.save_pretrained(tmp_path)
    model = LanguageModel.load(tmp_path)
    assert model.tokenizer is None
    assert not model.is_causal
    assert torch.equal(model.logits(ids), tiny("bert").logits(ids))


def test_the_bundled_model_is_the_folder_in_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(loading.__file__).parent / "bundled" / "weights" == loading._BUNDLED_WEIGHTS
    monkeypatch.setattr(loading, "_BUNDLED_WEIGHTS", folder)
    assert LanguageModel.load("bundled").name == "bundled"
    monkeypatch.setattr(loading, "_BUNDLED_WEIGHTS", folder / "nothing")
    with pytest.raises(ModelLoadError, match="bundled model's weights are missing"):
        LanguageModel.load("bundled")


def test_wrong_folders(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        LanguageModel.load(folder / "absent")
    with pytest.raises(FileNotFoundError, match="no folder"):
        LanguageModel.load("./absent")
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no config\.json \(it holds .*model\.safetensors"):
        LanguageModel.load(folder)


def test_broken_files(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="the tokenizer of"):
        LanguageModel.load(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelLoadError, match=r"weights of .* cannot be read"):
        LanguageModel.load(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"is config\.json intact"):
        LanguageModel.load(folder)


def test_weights_that_lack_a_part_are_not_filled_with_noise(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"1 of its tensors are missing .*h\.1\.mlp\.c_fc\.weight"):
        LanguageModel.load(folder)


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    T5Config(d_model=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"'t5'.*neither a causal nor a masked"):
        LanguageModel.load(tmp_path)


def test_an_unknown_name_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(source: str) -> None:
        raise OSError("We couldn't connect to the hub.\n" + "and a long explanation\n" * 50)

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(ModelLoadError, match=r"no language model 'someone/nothing' .*is there a network") as caught:
        LanguageModel.load("someone/nothing")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_unknown_dtypes_and_devices(folder: Path) -> None:
    for dtype in ("float33", "int8", "nn"):
        with pytest.raises(ValueError, match=f"unknown dtype '{dtype}'"):
            LanguageModel.load(folder, dtype=dtype)
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        LanguageModel.load(folder, device="gpu")
    with pytest.raises(ValueError, match="'cuda:99' does not exist"):
        LanguageModel.load(folder, device="cuda:99")
