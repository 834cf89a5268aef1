"""``python -m dssm_helpers.course --help``."""

import sys

from .runner import main

sys.exit(main())
