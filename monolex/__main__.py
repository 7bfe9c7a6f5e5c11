"""``python -m monolex``."""

import sys

from monolex.cli import main

sys.exit(main())
