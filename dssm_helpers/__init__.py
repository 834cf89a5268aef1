"""What the DSSM course builds, readable in an evening.

:data:`MODULES` is the order of imports: a module imports only modules before it, and never ``dssm_helpers.course``, the
school around this library. The package itself needs no torch: ``serving`` runs where torch is not installed.
"""

import os as _os

# Idle OpenMP threads spin by default. On a machine whose cores are busy that turns a 1 ms forward pass into 150 ms.
# The variable is read once, when torch loads its OpenMP runtime, so it has to be set before the first `import torch`.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "2.0.0"

MODULES = (
    "settings", "files", "vocabulary", "schema", "movielens", "data", "features", "model", "fast", "objectives",
    "training", "recipes", "evaluation", "index", "milvus", "retrieval", "visualization", "onnx_export", "pairs",
    "ranking", "serving", "distributed", "tables", "text", "folding",
)  # fmt: skip


def seed_everything(seed: int = 0) -> None:
    """Seed Python's, NumPy's and torch's global generators (notebook 01): for the first weights and other libraries."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
