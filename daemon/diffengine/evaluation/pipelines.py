# SPDX-License-Identifier: GPL-2.0-or-later
"""The pipelines that several experiments put side by side."""

from diffengine.analysis.pipelines import Codec, Detector, Pipeline
from diffengine.images import PAGE_BYTES

# The paper refuses longer patches.
PAPERS_PATCH_LIMIT = PAGE_BYTES // 2
SHARING = Pipeline("sharing only", True, Codec.RAW)
SHARING_LZ4 = Pipeline("sharing + LZ4", True, Codec.LZ4)
# What is not patched stays as it is.
PAPERS_PATCHING = Pipeline(
    "the paper's patching", True, Codec.RAW, Detector.HASH, patch_limit=PAPERS_PATCH_LIMIT, patch_first=True
)
PAPERS = Pipeline("the paper's", True, Codec.LZ4, Detector.HASH, patch_limit=PAPERS_PATCH_LIMIT, patch_first=True)
OURS = Pipeline("ours", True, Codec.DENSE, Detector.SHIFT)
