"""``python -m ds4kv`` is the command ``ds4kv``."""

import sys

from ds4kv.core.ctrl_c import hear
from ds4kv_command import main

hear()
sys.exit(main())
