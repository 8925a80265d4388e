"""The report that a run, or a table alone, ends in. Nothing heavy is imported before a figure is drawn."""

from rcmnet_jax.report.evaluate import evaluate_tables
from rcmnet_jax.report.html import render
from rcmnet_jax.report.inputs import DataFacts, ReportInputs

__all__ = ["DataFacts", "ReportInputs", "evaluate_tables", "render"]
