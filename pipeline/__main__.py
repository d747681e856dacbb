# SPDX-License-Identifier: MIT
"""`python -m pipeline` is `mamba-orin`."""

import sys

from pipeline.cli import main

sys.exit(main())
