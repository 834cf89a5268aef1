"""Helpers of the DSSM course: one small module per notebook.

Import order (a module imports only modules to its left)::

    vocabulary  data  features  model  evaluation  training  retrieval  visualization  onnx_export  serving
                                                                                  workspace, checks (may import all)

Importing the package is cheap and needs no torch: ``serving`` runs where torch is not installed.
"""

import os as _os

# Idle OpenMP threads spin by default. On a machine whose cores are busy that turns a 1 ms forward pass into 150 ms.
# The variable is read once, when torch loads its OpenMP runtime, so it has to be set before the first `import torch`.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "1.0.0"


def seed_everything(seed: int = 0) -> None:
    """Seed Python's, NumPy's and torch's global generators (notebook 01, set-up cell).

    Code in this package takes explicit generators where it draws random numbers; this call covers what remains:
    weight initialisation and third-party libraries.
    """
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
