"""`python -m latentlm` is `latentlm`: what torchrun and machines without the script on their PATH call."""

import sys

from latentlm.cli.main import main

sys.exit(main())
