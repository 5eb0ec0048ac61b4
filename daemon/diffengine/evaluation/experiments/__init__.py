# SPDX-License-Identifier: GPL-2.0-or-later
"""The experiments, one module each, in the order of the report."""

from diffengine.evaluation.experiments import fig2, hypothesis, table1

EXPERIMENTS = (hypothesis.EXPERIMENT, table1.EXPERIMENT, fig2.EXPERIMENT)
