"""`python -m dcgan`, for `torchrun` and for machines without the `dcgan` script on their path."""

import sys

from dcgan.cli import main

sys.exit(main())
