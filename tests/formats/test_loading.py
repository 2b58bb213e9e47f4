"""Opening, describing and converting: one call each, what fits no format said in words, nothing half-written."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import saescope as ss
from saescope.dictionaries import save_dictionary, sparse_encoding
from saescope.formats import loading
from saescope.formats.description import describe, description_lines
from saescope.formats.dictionaries import FORMATS
from saescope.formats.loading import convert, format_named, format_of, load, read_foreign
from saescope.formats.same_function import require_same_function
from saescope.formats.table import BEGIN, END, formats_table, with_table


def made(name: str = "topk", **settings) -> ss.Dictionary:
    """A dictionary of random weights, biases and thresholds, d_in 6, d_sae 10."""
    cls = ss.architecture(name)
    if "topk" in name or name == "matryoshka":
        settings.setdefault("k", 3)
    if "coder" in name:
        settings.setdefault("d_out", 5)
    dictionary = cls(cls.Config(d_in=6, d_sae=10, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for key, tensor in (*dictionary.named_parameters(), *dictionary.named_buffers()):
            if "threshold" in key:  # one for all is not estimated before training
                tensor.copy_(torch.full_like(tensor, 0.5) if tensor.isnan().any() else tensor.abs())
    return dictionary.eval()


@pytest.fixture
def folder(tmp_path):
    save_dictionary(made(), tmp_path / "mine", metadata={"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post"})
    return tmp_path / "mine"


ARCHITECTURES = ["relu", "topk", "jumprelu", "gated", "batch_topk", "matryoshka", "transcoder", "topk_skip_transcoder"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_dictionary_is_opened_as_it_was(tmp_path, name, mmap):
    dictionary = made(name)
    save_dictionary(dictionary, tmp_path / "x")
    found = load(tmp_path / "x", mmap=mmap)
    assert found.architecture == name
    expected = dictionary.saved_tensors()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.saved_tensors().items())
    assert all(parameter.requires_grad is not mmap for parameter in found.parameters())
    if found.encoder_rows is not None and not mmap:
        assert found.encoder_rows.is_contiguous()
    half = load(tmp_path / "x", dtype="bfloat16", mmap=mmap)
    assert {tensor.dtype for tensor in half.saved_tensors().values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["topk", "relu", "jumprelu"])
def test_the_kernels_read_an_encoder_that_is_left_in_its_file(tmp_path, name, monkeypatch):
    monkeypatch.setattr(sparse_encoding, "WORTH_IT", 0)
    monkeypatch.setattr(sparse_encoding, "_MOST_FIRINGS", 1.0)
    cls = ss.architecture(name)
    dictionary = cls(cls.Config(d_in=32, d_sae=96, **({"k": 4} if name == "topk" else {})))
    ss.save_dictionary(dictionary, tmp_path / "d")
    opened, x = load(tmp_path / "d", mmap=True), torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    assert not opened.encoder_rows.is_contiguous()
    with torch.no_grad():
        assert sparse_encoding.encode_fast(opened, x) is not None
        torch.testing.assert_close(opened.encode_sparse(x).to_dense(), dictionary.encode(x), rtol=1e-5, atol=1e-6)


def test_a_dictionary_that_was_opened_can_be_trained(folder):
    dictionary = load(folder)
    dictionary(torch.randn(4, 6)).sum().backward()
    assert dictionary.W_dec.grad is not None


def test_weights_that_are_no_numbers_are_refused(folder):
    weights = load_file(folder / "sae_weights.safetensors")
    for name in weights:
        broken = {key: tensor.clone() for key, tensor in weights.items()}
        broken[name].view(-1)[-1] = float("nan")
        save_file(broken, folder / "sae_weights.safetensors")
        with pytest.raises(ValueError, match=f"{name} holds NaN"):
            load(folder)
    save_file({**weights, "b_dec": weights["b_dec"] * 1e30}, folder / "sae_weights.safetensors")
    load(folder)
    with pytest.raises(ValueError, match=r"b_dec holds values that are too large for torch\.float16"):
        load(folder, dtype="float16")


def test_what_fits_no_format_lists_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"It holds notes\.txt\. Looked for were saescope: cfg\.json"):
        format_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no format is named 'gguf'; there are saescope"):
        format_named("gguf")


def test_a_dtype_that_is_none_is_refused(folder):
    with pytest.raises(ValueError, match="floating type"):
        load(folder, dtype="int8")


def test_what_can_not_be_said_of_a_format_is_refused(folder):
    with pytest.raises(ValueError, match="depth can not be said of a saescope dictionary"):
        load(folder, depth=3)


# Converting


@pytest.mark.parametrize("name", ["relu", "topk", "jumprelu", "batch_topk", "transcoder"])
def test_a_conversion_is_the_same_function(tmp_path, name):
    dictionary = made(name)
    save_dictionary(dictionary, tmp_path / "mine")
    said = convert(tmp_path / "mine", tmp_path / "theirs", to="saelens")
    again = load(tmp_path / "theirs", format="saelens")
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(again.encode(x), dictionary.encode(x), atol=1e-6)
    assert torch.allclose(again(x), dictionary(x), atol=1e-6)
    assert said[0] == f"read as saescope, {name}"
    assert "the same features fire" in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "theirs"]


def test_every_pair_of_formats_converts_or_refuses_in_words(tmp_path):
    """From our own file to every format that is written, and from there to every other: the same function, or a reason."""
    writers = [each.name for each in FORMATS if each.write]
    assert {"saescope", "saelens"} <= set(writers)

    def converted(source, target, to, **how) -> bool:
        try:
            convert(source, target, to=to, **how)
        except ValueError as error:
            reasons.append(str(error))
            return False
        return True

    reasons: list[str] = []
    for name in ("relu", "topk", "jumprelu", "transcoder"):
        save_dictionary(made(name), tmp_path / name)
        for first in writers:
            half_way = tmp_path / f"{name}-{first}"
            if not converted(tmp_path / name, half_way, first):
                assert not half_way.exists()
                continue
            for second in writers:
                target = tmp_path / f"{name}-{first}-{second}"
                if converted(half_way, target, second, format=first):
                    require_same_function(made(name), load(target, format=second), second)
        assert (tmp_path / f"{name}-saescope-saelens").exists()
        assert (tmp_path / f"{name}-saelens-saescope").exists()
    assert all(len(reason) > 30 for reason in reasons)
    assert not any("computes something else" in reason for reason in reasons), reasons


def test_the_dtype_can_be_changed(folder, tmp_path):
    convert(folder, tmp_path / "half", to="saelens", dtype="bfloat16")
    assert read_foreign(tmp_path / "half", format="saelens").dtype == torch.bfloat16


def test_a_folder_with_other_files_is_never_touched(folder, tmp_path):
    target = tmp_path / "theirs"
    convert(folder, target)
    with pytest.raises(FileExistsError, match="already exists"):
        convert(folder, target)
    convert(folder, target, overwrite=True)
    (target / "thesis.tex").write_text("years of work")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        convert(folder, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(target)
    for name in ("file", "link"):
        with pytest.raises(FileExistsError, match="choose another folder"):
            convert(folder, tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "mine", "theirs"]


def test_a_dictionary_can_be_converted_in_its_place(folder):
    expected = load(folder)(torch.ones(3, 6))
    convert(folder, folder, to="saescope", overwrite=True)
    assert torch.equal(load(folder)(torch.ones(3, 6)), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.b_enc.add_(0.1), "computes something else"),
        (lambda d: d.b_dec.mul_(1 + 1e-3), "computes something else"),
        (lambda d: d.W_dec.mul_(1 + 1e-4), r"differ by (0\.0001|9\.)"),
        (lambda d: d.W_dec[3, 2].add_(0.01), "computes something else"),
    ],
)
def test_a_writer_that_changes_the_function_is_caught(folder, tmp_path, monkeypatch, change, words):
    """Each planted fault of a writer is refused, and nothing stays behind."""

    def write(dictionary, place, metadata):
        faulty = copy.deepcopy(dictionary)
        with torch.no_grad():
            change(faulty)
        save_dictionary(faulty, place, overwrite=True)

    faulty = replace(format_named("saelens"), write=write)
    monkeypatch.setattr(loading, "FORMATS", (format_named("saescope"), faulty))
    with pytest.raises(ValueError, match=words):
        convert(folder, tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_format_that_is_not_written_is_refused(folder, tmp_path):
    readers = [each.name for each in FORMATS if not each.write]
    for name in readers:
        with pytest.raises(ValueError, match="is read here, and not written; written are saescope"):
            convert(folder, tmp_path / "theirs", to=name)


# Describing


def test_a_description_reads_no_weights(folder, monkeypatch):
    from saescope.formats import mapped_files

    def refuse(*_, **__):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(mapped_files.MappedFile, "flat", refuse)
    found = describe(folder)
    assert (found["format"], found["architecture"], found["d_in"], found["d_sae"]) == ("saescope", "topk", 6, 10)
    assert found["settings"]["k"] == 3
    assert (found["dtype"], found["bytes"], found["parameters"]) == ("float32", 4 * 136, 136)
    assert found["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert found["centring"].startswith("b_dec is subtracted")
    assert json.loads(json.dumps(found)) == found
    lines = dict(description_lines(found))
    assert lines["architecture"] == "topk, k = 3"
    assert lines["size"] == "d_sae 10, d_in 6; float32, 544 bytes"
    assert "k largest" in lines["gate"]
    assert (lines["model"], lines["hook point"]) == ("gpt2", "blocks.1.hook_resid_post")


@pytest.mark.parametrize("name", sorted(set(ss.architectures()) - {n for n in ss.architectures() if "archetypal" in n}))
def test_every_architecture_can_be_described(tmp_path, name):
    cls = ss.architecture(name)
    settings = {"k": 2} if "k" in cls.Config.__dataclass_fields__ else {}
    if "d_out" in cls.Config.__dataclass_fields__:
        settings["d_out"] = 5
    if "source_widths" in cls.Config.__dataclass_fields__:
        settings["source_widths"] = (3, 3)
    save_dictionary(cls(cls.Config(d_in=6, d_sae=10, **settings)), tmp_path / "x")
    found = describe(tmp_path / "x")
    assert found["architecture"] == name
    assert "that of the architecture" not in found["gate"]
    assert description_lines(found)


# The table


def test_the_table_has_a_row_for_each_format():
    rows = formats_table().splitlines()
    assert len(rows) == len(FORMATS) + 2
    assert all(row.count(" | ") == rows[0].count(" | ") for row in rows[2:])
    assert with_table(f"above\n{BEGIN}\nold\n{END}\nbelow") == f"above\n{BEGIN}\n{formats_table()}{END}\nbelow"
    with pytest.raises(ValueError, match="should have the lines"):
        with_table("nothing")
