"""`python -m benchmarks`: says what to install where something is missing, else hands over to the command line."""

import sys

try:
    from benchmarks.cli import main
except ModuleNotFoundError as error:
    if error.name not in ("rich", "matplotlib", "numpy"):
        raise
    sys.exit(f"the benchmarks need {error.name}: python -m pip install 'convx[bench]' (PyTorch, if wanted, apart)")

sys.exit(main())
