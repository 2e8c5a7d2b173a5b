"""Evaluation: multiple-choice questions scored by one of three protocols, with intervals and averages."""

from moslora.evaluation.journal import Evaluation
from moslora.evaluation.predictions import METRICS, Prediction, Score
from moslora.evaluation.results import Results, Settings
from moslora.evaluation.run import evaluate
from moslora.evaluation.scorer import Request

__all__ = ["METRICS", "Evaluation", "Prediction", "Request", "Results", "Score", "Settings", "evaluate"]
