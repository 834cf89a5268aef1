"""``python -m dssm_helpers.course --help``."""

import sys

from .commands import main

sys.exit(main())
