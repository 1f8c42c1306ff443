"""`python -m carv_3d`: the command `carv`."""

import sys

from carv_3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
