# SPDX-License-Identifier: GPL-2.0-or-later
"""What memory images would save, technique by technique: every figure comes from pages stored, rebuilt and compared."""

from diffengine.analysis.analyze import Analysis, AnalysisOptions, analyze
from diffengine.analysis.pipelines import PipelineResult

__all__ = ["Analysis", "AnalysisOptions", "PipelineResult", "analyze"]
