"""``python -m ds4kv`` is the command ``ds4kv``."""

import sys

from ds4kv.cli import main

sys.exit(main())
