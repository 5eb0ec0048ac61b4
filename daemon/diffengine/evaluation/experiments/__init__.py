# SPDX-License-Identifier: GPL-2.0-or-later
"""The experiments, one module each, in the order of the report."""

from diffengine.evaluation.experiments import (
    c1_c4,
    fig2,
    fig4,
    fig5_7,
    fig8,
    fig9_11,
    fig12,
    hypothesis,
    ioemu,
    passes,
    peers,
    rig,
    scale,
    swapping,
    table1,
    table2,
)

EXPERIMENTS = (
    hypothesis.EXPERIMENT,
    table1.EXPERIMENT,
    fig2.EXPERIMENT,
    table2.EXPERIMENT,
    fig4.EXPERIMENT,
    fig5_7.EXPERIMENT,
    fig8.EXPERIMENT,
    fig9_11.EXPERIMENT,
    rig.EXPERIMENT,
    fig12.EXPERIMENT,
    swapping.EXPERIMENT,
    passes.PASSES_EXPERIMENT,
    passes.HEAP_EXPERIMENT,
    c1_c4.EXPERIMENT,
    ioemu.EXPERIMENT,
    peers.EXPERIMENT,
    scale.EXPERIMENT,
)
