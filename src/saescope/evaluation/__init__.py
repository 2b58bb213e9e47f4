"""Evaluation: numbers that say which definition they are, how sure they are, and whether they are good.

``evaluate`` gives the core numbers of one dictionary; ``run_studies`` any of ``STUDIES`` on a :class:`Bench`. Every study
is also a plain function in its own module.
"""

from saescope.evaluation.bench import Bench, BenchConfig
from saescope.evaluation.core.baselines import Baselines
from saescope.evaluation.core.study import evaluate, evaluate_activations
from saescope.evaluation.kept_results import KeptResults
from saescope.evaluation.reporting.report import EvaluatedDictionary, EvaluationReport
from saescope.evaluation.reporting.summary import summarise
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample, encode_sample, read_sample
from saescope.evaluation.sites import Sites
from saescope.evaluation.studies import STUDIES, Study, chosen_studies, run_consistency, run_controls, run_studies
from saescope.evaluation.targets import TARGETS, Target, verdicts

__all__ = [
    "STUDIES",
    "TARGETS",
    "Baselines",
    "Bench",
    "BenchConfig",
    "EvaluatedDictionary",
    "EvaluationReport",
    "KeptResults",
    "Number",
    "Sites",
    "Study",
    "StudyResult",
    "Target",
    "TokenLabels",
    "TokenSample",
    "chosen_studies",
    "encode_sample",
    "evaluate",
    "evaluate_activations",
    "read_sample",
    "run_consistency",
    "run_controls",
    "run_studies",
    "summarise",
    "verdicts",
]
