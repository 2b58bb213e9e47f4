"""The reproductions' own machinery on a toy study, and a page that says what the stored results say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# adds a line to runs.log for each run; what else it does is said by files beside it
TOY = """
import os
import signal
from pathlib import Path

from reproductions.study import Bar, Column, Run, Study

HERE = Path(__file__).parent
RUNS = tuple(Run("square", data_seed, (seed,)) for data_seed in (0, 1) for seed in (1, 2))


def run(config):
    with open(HERE / "runs.log", "a") as log:
        log.write(f"{config.data_seed} {config.seeds[0]}\\n")
    if (config.data_seed, config.seeds[0]) == (1, 1):
        if (HERE / "kill").exists():
            os.kill(os.getppid(), signal.SIGKILL)
        if (HERE / "die").exists():
            os._exit(1)
        if (HERE / "raise").exists():
            raise ValueError("no such number")
    return {"square": config.seeds[0] ** 2 + config.data_seed}


BARS = (Bar("mean square", lambda r: r.mean("square"), at_least=2.0, at_most=4.0),)


def draw(results, figure):
    figure.subplots().plot(results.values("square"))


STUDY = Study(
    number=9, name="toy", title="Squares", paper="nobody", published="None published.", setup="none", remarks="none",
    runs=RUNS, run=run, columns=(Column("square", "square", 1),), bars=BARS, bars_set="on a day", draw=draw, caption="c",
)
"""

MAIN = """
import sys
from pathlib import Path

from reproductions.command import main
from reproductions.running import load

if __name__ == "__main__":
    here = Path(sys.argv[1])
    where = ["--results", str(here / "results"), "--page", str(here / "page.md")]
    sys.exit(main([load(here / "toy.py").STUDY], ["--jobs", "1", *where]))
"""


class Toy:
    """The toy study in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(TOY)
        (folder / "main.py").write_text(MAIN)

    def write(self, source: str) -> None:
        (self.folder / "toy.py").write_text(source)
        # a compiled file is taken for current when size and second of the source are the same
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)

    def go(self, jobs: int = 1) -> int:
        """Run what is missing; the exit code."""
        from reproductions.command import main
        from reproductions.running import load

        study = load(self.folder / "toy.py").STUDY
        where = ["--results", str(self.folder / "results"), "--page", str(self.folder / "page.md")]
        return main([study], ["--jobs", str(jobs), *where])

    def go_apart(self) -> int:
        """The same in a process of its own."""
        command = [sys.executable, str(self.folder / "main.py"), str(self.folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode

    def ran(self) -> list[str]:
        """The runs made since this was last asked."""
        log = self.folder / "runs.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return sorted(lines)

    def stored(self) -> list[dict]:
        return list(json.loads((self.folder / "results" / "toy.json").read_text()).values())

    def page(self) -> str:
        return (self.folder / "page.md").read_text()


@pytest.fixture(autouse=True)
def _repository(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


ALL = ["0 1", "0 2", "1 1", "1 2"]


def test_a_study_runs_once(toy):
    assert toy.go(jobs=2) == 0
    assert toy.ran() == ALL
    assert {(r["run"]["data_seed"], *r["run"]["seeds"], r["values"]["square"]) for r in toy.stored()} == {
        (0, 1, 1.0), (0, 2, 4.0), (1, 1, 2.0), (1, 2, 5.0),
    }  # fmt: skip
    # means of the data seeds are 2.5 and 3.5
    assert "| mean square | ≥ 2 and ≤ 4 | 2.500 | 3.500 | holds |" in toy.page()
    assert "| square | 3.0 (2.5 to 3.5) |" in toy.page()
    assert (toy.folder / "page" / "toy.png").stat().st_size > 0
    before = toy.page()
    assert toy.go() == 0
    assert toy.ran() == []
    assert toy.page() == before


def test_a_killed_run_goes_on_where_it_stopped(toy):
    (toy.folder / "kill").touch()
    assert toy.go_apart() == -9
    assert toy.ran() == ["0 1", "0 2", "1 1"]
    assert len(toy.stored()) == 2
    (toy.folder / "kill").unlink()
    assert toy.go() == 0
    assert toy.ran() == ["1 1", "1 2"]
    assert len(toy.stored()) == 4


def test_other_code_is_run_again_and_other_words_are_not(toy):
    assert toy.go() == 0
    toy.ran()
    toy.write(TOY.replace("at_most=4.0", "at_most=5.0").replace('setup="none"', 'setup="some"'))
    assert toy.go() == 0
    assert toy.ran() == []
    assert "**Set-up.** some" in toy.page()
    toy.write(TOY.replace("** 2", "* config.seeds[0] * 1.0"))
    assert toy.go() == 0
    assert toy.ran() == ALL
    assert len(toy.stored()) == 4  # those of the earlier code are gone


def test_a_bar_that_one_data_seed_misses_fails_the_study(toy):
    toy.write(TOY.replace("at_most=4.0", "at_most=3.0"))
    assert toy.go() == 1
    assert "| mean square | ≥ 2 and ≤ 3 | 2.500 | 3.500 | **failed** |" in toy.page()
    assert "| 9 | Squares | failed | 0 of 1 |" in toy.page()


@pytest.mark.parametrize(("how", "why"), [("raise", "ValueError: no such number"), ("die", "died")])
def test_a_failed_run_does_not_stop_the_others(toy, how, why):
    (toy.folder / how).touch()
    assert toy.go(jobs=2) == 1
    assert set(toy.ran()) == set(ALL)
    assert why in toy.page()
    assert "| 9 | Squares | failed |" in toy.page()
    (toy.folder / how).unlink()
    assert toy.go() == 0
    assert toy.ran() == ["1 1"]
    assert why not in toy.page()


def test_a_number_that_is_not_defined_reaches_no_bar():
    from reproductions.study import Bar

    assert not Bar("", lambda r: 0.0, at_most=1.0).holds(float("nan"))
    assert Bar("", lambda r: 0.0, at_least=1.0, at_most=2.0).holds(1.0)
    assert not Bar("", lambda r: 0.0, at_least=1.0, at_most=2.0).holds(2.1)


def test_interpolation_is_linear_and_does_not_leave_the_curve():
    from math import isnan

    from reproductions.study import interpolated

    curve = [(1.0, 10.0), (2.0, 20.0), (4.0, 0.0)]
    assert [interpolated(curve, x) for x in (1.0, 1.5, 2.0, 3.0, 4.0)] == [10.0, 15.0, 20.0, 10.0, 0.0]
    assert isnan(interpolated(curve, 0.9))
    assert isnan(interpolated(curve, 4.1))


def test_the_page_says_what_the_stored_results_say():
    from reproductions.__main__ import STUDIES
    from reproductions.command import PAGE, RESULTS, stored
    from reproductions.page import page

    outcomes = [stored(study, RESULTS) for study in STUDIES]
    assert PAGE.read_text() == page(outcomes), "run `python -m reproductions --page-only`"
    for o in outcomes:
        assert (PAGE.parent / PAGE.stem / f"{o.study.name}.png").exists()
        assert o.word in ("holds", "failed")
        assert not o.num_missing


def test_the_hash_covers_the_upper_half_of_a_study_and_the_sources(tmp_path):
    from reproductions.running import code_hash

    study, sources = tmp_path / "study.py", tmp_path / "sources"
    sources.mkdir()
    study.write_text("one = 1\nBARS = ()\n")
    (sources / "a.py").write_text("a")
    first = code_hash(study, [sources])
    study.write_text("one = 1\nBARS = (2,)\n")
    assert code_hash(study, [sources]) == first
    (sources / "a.py").write_text("b")
    assert code_hash(study, [sources]) != first
    (sources / "a.py").write_text("a")
    (sources / "b.py").write_text("")
    assert code_hash(study, [sources]) != first
    (sources / "b.py").unlink()
    study.write_text("one = 2\nBARS = ()\n")
    assert code_hash(study, [sources]) != first


def test_a_bar_in_a_cell_does_not_end_it():
    from reproductions.page import table

    assert table(["|x|"], [["a"]]) == "| \\|x\\| |\n|---|\n| a |\n"
