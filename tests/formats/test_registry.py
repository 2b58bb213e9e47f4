"""The index of published dictionaries: what it says, how it is written, and that it gives back what it was made from."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from saescope.formats import make_registry, registry
from saescope.formats.make_registry import grouped, releases_of, squeezed, write_registry
from saescope.formats.registry import entries_in, expand_column

GEMMA = "gemma-scope-2b-pt-res-canonical/layer_20/width_16k/canonical"


def test_the_file_is_whole_and_small():
    head, lines = registry.read_lines()
    assert head["digest"] == registry.digest(lines), "pretrained.jsonl was changed by hand, or is read wrongly"
    assert head["releases"] == len(lines)
    assert head["dictionaries"] == sum(1 for line in lines for _ in entries_in(line))
    assert registry.REGISTRY_FILE.stat().st_size < 300_000


def test_its_shape_is_that_of_sae_lens_6_54():
    head, _ = registry.read_lines()
    if head["made_from"] != "sae-lens 6.54.12":
        pytest.skip("counted in another version")
    found = registry.published()
    assert (len(registry.releases()), len(found), len({each.model for each in found})) == (170, 13_857, 38)
    by_loader = Counter(each.loader for each in found)
    assert by_loader["gemma_3"] == 8784
    assert by_loader["qwen_scope"] == 544
    assert by_loader[""] == 292
    known = {name: sum(getattr(each, name) not in (None, "") for each in found)
             for name in ("l0", "neuronpedia", "variance_explained", "norm_scaling_factor")}  # fmt: skip
    assert known == {"l0": 12_147, "neuronpedia": 2_441, "variance_explained": 78, "norm_scaling_factor": 304}


def test_what_is_known_of_one():
    found = registry.find("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert (found.repo, found.path, found.model) == (
        "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre", "gpt2-small",
    )  # fmt: skip
    assert found.hook == "blocks.8.hook_resid_pre"
    assert found.neuronpedia == "gpt2-small/8-res-jb"
    assert found.facts == {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    assert found.place == "hf:jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre"


def test_ids_have_slashes_of_their_own():
    found = registry.find(GEMMA)
    assert (found.release, found.id) == ("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical")
    assert found.path.startswith("layer_20/width_16k/average_l0_")


def test_a_page_of_neuronpedia_leads_to_the_same():
    assert registry.find_neuronpedia("gemma-2-2b/20-gemmascope-res-16k") == registry.find(GEMMA)
    paged = [each for each in registry.published() if each.neuronpedia]
    assert len({each.neuronpedia for each in paged}) == len(paged)
    for each in paged[::100]:
        assert registry.find_neuronpedia(each.neuronpedia) == each


def test_a_place_on_the_hub_leads_back():
    found = registry.find("llama_scope_lxr_8x/l15r_8x")
    assert registry.at(found.repo, found.path) == found
    assert registry.at("org/none", "x") is None
    shared = registry.at("google/gemma-scope-2b-pt-res", registry.find(GEMMA).path)
    assert shared.neuronpedia == "gemma-2-2b/20-gemmascope-res-16k"  # the release that knows more


@pytest.mark.parametrize(
    ("ref", "hook", "written"),
    [
        (GEMMA, "blocks.20.hook_resid_post", ""),
        ("gemma-scope-2b-pt-att-canonical/layer_3/width_16k/canonical", "blocks.3.attn.hook_z", ""),
        ("gemma-scope-2b-pt-mlp-canonical/layer_3/width_16k/canonical", "blocks.3.hook_mlp_out", ""),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "hook_embed", ""),
        ("gpt2-small-res-jb-feature-splitting/blocks.8.hook_resid_pre_768", "blocks.8.hook_resid_pre", ""),
        ("gpt2-small-hook-z-kk/blocks.5.hook_z", "blocks.5.attn.hook_z", ""),
        ("llama_scope_lxa_8x/l7a_8x", "blocks.7.hook_attn_out", ""),
        ("llama_scope_lxm_8x/l7m_8x", "blocks.7.hook_mlp_out", ""),
        ("temporal-sae-gemma-2-2b/blocks.12.hook_resid_post", "blocks.12.hook_resid_post", ""),
        ("qwen-scope-3-8b-base-w64k-l50/layer31", "blocks.31.hook_resid_post", ""),
        ("llama-3.1-8b-instruct-andyrdt/resid_post_layer_3_trainer_1", "blocks.3.hook_resid_post", ""),
        ("goodfire-llama-3.3-70b-instruct/layer_50", "blocks.50.hook_resid_post", ""),
        ("mwhanna-qwen3-4b-transcoders/layer_30", "blocks.30.mlp.hook_in", "blocks.30.hook_mlp_out"),
        ("gemma-scope-2-4b-pt-res-all/layer_5_width_16k_l0_big", "model.layers.5.output", ""),
        (
            "gemma-scope-2-4b-pt-transcoders-all/layer_5_width_16k_l0_big",
            "model.layers.5.pre_feedforward_layernorm.output",
            "model.layers.5.post_feedforward_layernorm.output",
        ),
    ],
)
def test_where_a_dictionary_sits(ref, hook, written):
    found = registry.find(ref)
    assert (found.hook, found.hook_out) == (hook, written)


def test_only_cross_layer_transcoders_have_no_hook_point():
    assert {each.loader for each in registry.published() if not each.hook} == {"mntss_clt_layer_transcoder"}


def test_layers_of_a_cross_layer_transcoder_lie_together():
    found = registry.find("mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_7")
    assert found.place == "hf:mntss/clt-gemma-2-2b-2.5M"
    assert found.facts == {"layer": 7}


def test_metadata_fills_gaps_and_the_releases_settings_hold():
    found = registry.find("gpt2-small-mlp-tm/blocks.4.hook_mlp_out")
    assert found.facts["norm_scaling_factor"] == found.norm_scaling_factor > 0
    files = {"model_name": "gpt2", "dataset_path": "other", "context_size": 64}
    completed = found.completed(files)
    assert completed["model_name"] == "gpt2"  # as the files say
    assert completed["dataset_path"] == "Skylion007/openwebtext"  # as the release says
    assert completed["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    assert (completed["context_size"], completed["hook_name"]) == (64, "blocks.4.hook_mlp_out")
    assert completed["published"]["id"] == "blocks.4.hook_mlp_out"
    assert files == {"model_name": "gpt2", "dataset_path": "other", "context_size": 64}
    assert "normalize_activations" not in registry.release("mistral-7b-res-wg")[0].completed({})


def test_models_with_and_without_their_organisation():
    one, two = registry.published(model="Gemma-3-1b-pt"), registry.published(model="google/gemma-3-1b-pt")
    assert one == two != []
    assert {each.model for each in registry.published(model="gemma-2-2b")} == {"gemma-2-2b"}
    with pytest.raises(ValueError, match="gemma-2-2b"):
        registry.published(model="gemma-2-2bb")


def test_hook_points_by_a_part_of_their_name():
    found = registry.published(model="gpt2-small", hook="hook_resid_mid")
    assert {each.release for each in found} == {"gpt2-small-resid-mid-v5-128k", "gpt2-small-resid-mid-v5-32k"}
    assert len(registry.published(model="gpt2-small", hook="blocks.3.hook_resid_mid")) == 2


def test_entries_of_a_release_come_in_natural_order():
    ids = [each.id for each in registry.release("gpt2-small-resid-mid-v5-32k")]
    assert ids == [f"blocks.{layer}.hook_resid_mid" for layer in range(12)]


def test_names_that_look_alike():
    assert registry.nearest("gpt2-small-res-jb/blocks.8.hook_resid_post")[0].startswith("gpt2-small-res-jb/blocks.")
    assert "gpt2-small/8-res-jb" in registry.nearest("gpt2-small/8-res-jbb")
    assert (
        registry.nearest("gpt2-small-res-jp/blocks.8.hook_resid_pre")[0] == "gpt2-small-res-jb/blocks.8.hook_resid_pre"
    )
    assert registry.nearest("qqqqq") == []


def test_one_line_is_expanded_to_answer_a_question(monkeypatch):
    expanded = []
    monkeypatch.setattr(registry, "entries_in", lambda line: expanded.append(line["release"]) or entries_in(line))
    registry._expanded.cache_clear()
    registry.find("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert expanded == ["gpt2-small-res-jb"]


def test_a_question_needs_neither_torch_nor_yaml():
    program = (
        "from saescope.formats import registry; import sys\n"
        "assert registry.find('gpt2-small-res-jb/blocks.8.hook_resid_pre')\n"
        "assert not {'torch', 'numpy', 'yaml', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# The way there and back


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["0", "1", "2"], "0-2"),
        (["5", "5"], "...*2 5"),
        (["0", "0", "1"], "0*2 1"),
        (["16", "65", "16", "65"], "...*2 16 65"),
        (["8", "9"], "8 9"),
        (["09", "10", "11"], "09 10 11"),  # as they are written
        (["1e-05", "0.25", "0.25", "7"], "1e-05 0.25*2 7"),
        (["3"], "3"),
    ],
)
def test_columns_in_words(column, words):
    assert squeezed(column) == words
    assert expand_column(words) == column


def test_random_columns_come_back():
    draw = random.Random(0)
    for _ in range(300):
        column = [draw.choice(["0", "1", "2", "3", "10", "011", "1.5"]) for _ in range(draw.randint(1, 12))]
        assert expand_column(squeezed(column)) == column


def entry(id: str, **more: object) -> dict[str, object]:
    return {"id": id, "path": id, **more}


def test_entries_come_back_from_groups():
    entries = [
        *(entry(f"layer_{n}/l0_{n * n}", l0=n * n, neuronpedia=f"m-2/{n}-x") for n in range(4)),
        entry("layer_7/l0_3", l0=3),  # no page
        entry("embedding", l0=2.5, norm_scaling_factor=0.1 + 0.2, path="x/e.pt"),
    ]
    line = {"release": "r", "groups": json.loads(json.dumps(grouped(entries)))}
    assert sorted(entries_in(line), key=lambda e: e["id"]) == sorted(entries, key=lambda e: e["id"])
    assert [type(e["l0"]) for e in entries_in(line)] == [int] * 5 + [float]


YAML = """
one:
  conversion_func: null
  model: gpt2-small
  repo_id: org/one
  links: {dashboards: somewhere}
  config_overrides: {dataset_path: text}
  saes:
  - {id: blocks.0.hook_resid_pre, path: 0, l0: 12.5}
  - {id: blocks.1.hook_resid_pre, path: 1, repo_id: org/copy, saes: [{id: x, path: y}]}
"""


def test_a_registry_of_sae_lens_is_read(tmp_path):
    (tmp_path / "pretrained_saes.yaml").write_text(YAML)
    head = write_registry(tmp_path / "pretrained_saes.yaml", tmp_path / "out.jsonl")
    assert (head["releases"], head["dictionaries"]) == (1, 2)
    read, (line,) = registry.read_lines(tmp_path / "out.jsonl")
    assert read == head
    assert {k: v for k, v in line.items() if k != "groups"} == {
        "release": "one", "repo": "org/one", "model": "gpt2-small", "overrides": {"dataset_path": "text"},
    }  # fmt: skip
    assert list(entries_in(line)) == [
        {"id": "blocks.0.hook_resid_pre", "path": "0", "l0": 12.5},
        {"id": "blocks.1.hook_resid_pre", "path": "1"},
    ]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("broken", [YAML.replace("path: 1, ", ""), YAML.replace("blocks.1", "blocks.0")])
def test_a_broken_registry_is_refused(tmp_path, broken):
    (tmp_path / "broken.yaml").write_text(broken)
    with pytest.raises(ValueError, match=r"no id or no path|two entries of one id"):
        write_registry(tmp_path / "broken.yaml", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_what_would_not_come_back_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "pretrained_saes.yaml").write_text(YAML.replace("path: 1,", "path: 1, l0: 3,"))
    monkeypatch.setattr(make_registry, "squeezed", lambda column: " ".join(["9", *column[1:]]))
    with pytest.raises(ValueError, match="does not give back"):
        write_registry(tmp_path / "pretrained_saes.yaml", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_every_entry_is_as_in_the_installed_sae_lens(peer_python):
    program = "import importlib.util as u; print(u.find_spec('sae_lens').submodule_search_locations[0])"
    ran = subprocess.run([str(peer_python), "-c", program], check=True, capture_output=True, text=True)
    source = Path(ran.stdout.strip()) / "pretrained_saes.yaml"
    made_from = make_registry._version_beside(source)
    if made_from != registry.made_from():
        pytest.fail(f"pretrained.jsonl is from {registry.made_from()}, installed is {made_from}: write it again")
    wanted = releases_of(source)
    assert set(registry.releases()) == set(wanted)
    for name, about in wanted.items():
        for found in registry.release(name):
            expected = {"loader": "", "overrides": {}, "neuronpedia": "", "l0": None, "variance_explained": None,
                        "norm_scaling_factor": None}  # fmt: skip
            expected |= {key: value for key, value in about.items() if key != "entries"}
            expected |= next(each for each in about["entries"] if each["id"] == found.id)
            assert vars(found) == {"release": name, **expected}
        assert len(registry.release(name)) == len(about["entries"])


@pytest.mark.slow
def test_sae_lens_own_directory_says_the_same(peer_python, tmp_path):
    """Through SAELens' own code, not through our reading of its file."""
    program = (
        "import json, sys\n"
        "from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory as get\n"
        "print('sae-lens', __import__('importlib.metadata').metadata.version('sae-lens'), file=sys.stderr)\n"
        "found = {n: [r.repo_id, r.model, r.conversion_func, r.saes_map, r.expected_l0, r.neuronpedia_id,"
        " r.norm_scaling_factor, r.config_overrides] for n, r in get().items()}\n"
        "json.dump(found, open(sys.argv[1], 'w'))"
    )
    file = tmp_path / "directory.json"
    ran = subprocess.run([str(peer_python), "-c", program, str(file)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    print(ran.stderr.strip().splitlines()[-1])
    theirs = json.loads(file.read_text())
    ours = {
        name: [
            own[0].repo, own[0].model, own[0].loader or None, {e.id: e.path for e in own}, {e.id: e.l0 or 0 for e in own},
            {e.id: e.neuronpedia or None for e in own},
            {e.id: e.norm_scaling_factor for e in own if e.norm_scaling_factor is not None}, own[0].overrides or None,
        ]
        for name in registry.releases()
        if (own := registry.release(name))
    }  # fmt: skip
    assert theirs == ours
