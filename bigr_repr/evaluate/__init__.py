"""Measuring representations: data sets, feature cache, probes, kNN, retrieval and generation metrics, suites, reports.

Measures of rankings by labels are in the module `retrieval`, pictures of features in `drawings` and `inspection`.
"""

from bigr_repr.evaluate.bench import BenchRow, bench, bench_generation, bench_retrieval, best_row
from bigr_repr.evaluate.cache import FeatureCache
from bigr_repr.evaluate.extraction import BenchFeatures, BenchSettings, features_of
from bigr_repr.evaluate.generation import (
    GenerationQuality,
    PrecisionRecall,
    frechet_distance,
    generation_quality,
    precision_recall,
)
from bigr_repr.evaluate.knn import Knn, knn
from bigr_repr.evaluate.label_retrieval import Collection, RetrievalRow, label_retrieval
from bigr_repr.evaluate.linear_probe import LinearProbe, linear_probe, linear_probes
from bigr_repr.evaluate.protocols import SgdProtocol
from bigr_repr.evaluate.report import markdown_table, write_reports
from bigr_repr.evaluate.representations import Representation, View, open_representation
from bigr_repr.evaluate.splits import DATASETS, BenchData, Part, open_data, transfer
from bigr_repr.evaluate.suite import Suite, SuiteData, SuiteModel, read_suite, run_suite

__all__ = [
    "DATASETS",
    "BenchData",
    "BenchFeatures",
    "BenchRow",
    "BenchSettings",
    "Collection",
    "FeatureCache",
    "GenerationQuality",
    "Knn",
    "LinearProbe",
    "Part",
    "PrecisionRecall",
    "Representation",
    "RetrievalRow",
    "SgdProtocol",
    "Suite",
    "SuiteData",
    "SuiteModel",
    "View",
    "bench",
    "bench_generation",
    "bench_retrieval",
    "best_row",
    "features_of",
    "frechet_distance",
    "generation_quality",
    "knn",
    "label_retrieval",
    "linear_probe",
    "linear_probes",
    "markdown_table",
    "open_data",
    "open_representation",
    "precision_recall",
    "read_suite",
    "run_suite",
    "transfer",
    "write_reports",
]
