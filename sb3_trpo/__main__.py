"""Run the ``sb3-trpo`` command: ``python -m sb3_trpo``."""

import sys

from sb3_trpo.zoo.commands import main

if __name__ == "__main__":
    sys.exit(main())
