"""`python -m benchmarks`: run the command line, or name the package that is missing."""

import sys

try:
    from benchmarks.cli import main
except ModuleNotFoundError as error:
    if error.name not in ("rich", "matplotlib", "numpy"):
        raise
    sys.exit(f"the benchmarks need {error.name}: python -m pip install 'convx[bench]' (and torch, to compare with it)")

sys.exit(main())
