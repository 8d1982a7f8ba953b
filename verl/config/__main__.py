"""``python -m verl.config``; see `command`."""

import sys

from verl.config.command import main

sys.exit(main(sys.argv[1:]))
