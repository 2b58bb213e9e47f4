"""The journey of the page: trained by SAELens, opened, measured, analysed and shown here, written back, opened there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saescope import ActivationStream, LanguageModel, TokenWindows, WindowConfig, load, read_documents
from saescope.metrics import explained_variance

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from-saelens.md").read_text()
SCRIPT = ROOT / "tests" / "formats" / "peers" / "saelens_training.py"
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    model = LanguageModel.load("bundled")
    shape = WindowConfig(context_size=64, prepend_bos=False, max_tokens=24_000)
    windows = TokenWindows.build(read_documents("bundled"), model.tokenizer, shape)
    stream = ActivationStream(model, windows, [HOOK], batch_size_tokens=2048)
    return torch.cat([batch for _, batch in zip(range(8), stream.at(HOOK), strict=False)])


@pytest.mark.slow
def test_there_and_back(peer_python: Path, activations: torch.Tensor, tmp_path: Path) -> None:
    def run(*command: object, python: object = sys.executable) -> str:
        ran = subprocess.run([python, *command], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    save_file({"x": activations.contiguous()}, tmp_path / "x.safetensors")
    run(SCRIPT, "train", "x.safetensors", "theirs", python=peer_python)
    ours = load(tmp_path / "theirs")
    with torch.no_grad():
        f = ours.encode(activations)
        rebuilt = ours.decode(f)
    here = float(explained_variance(activations, rebuilt))
    assert here > 0.5  # it was trained

    there, back = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = [run("-m", *shlex.split(line)) for line in there.strip().splitlines()]
    assert "nothing looks wrong" in printed[0]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert "explained_variance" in json.dumps(numbers)
    run("-W", "error", "-c", program)
    html = (tmp_path / "theirs.html").read_text()
    assert html.count("<article") + html.count('class="feature') >= 12
    for line in back.strip().splitlines():
        run("-m", *shlex.split(line))
    shown = run(SCRIPT, "open", "back", "x.safetensors", python=peer_python)
    found = re.search(r"L0 ([\d.]+), explained variance ([\d.]+)", shown)
    assert found
    assert float(found[1]) == pytest.approx(float((f != 0).sum(-1).double().mean()), abs=2e-3)
    assert float(found[2]) == pytest.approx(here, abs=2e-5)
