"""`python -m carv_3d.cli`, as `python -m carv_3d`."""

import sys

from carv_3d.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
