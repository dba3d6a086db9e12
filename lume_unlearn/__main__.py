"""`python -m lume_unlearn`, for launchers such as `accelerate launch -m lume_unlearn run ...`."""

import sys

from lume_unlearn.cli.main import main

sys.exit(main())
