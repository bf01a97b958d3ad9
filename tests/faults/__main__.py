"""`python -m tests.faults [SEED …]`: see campaign.main."""

import sys

from tests.faults.campaign import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
