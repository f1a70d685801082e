"""``python -m convx``: see :mod:`convx._cli`."""

import logging
import os
import signal
import sys

from ._cli import end, main

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, end)
    # The pictures need no backend, but matplotlib's import fails where MPLBACKEND names a missing one. Its log messages
    # about its own folders do not concern the user.
    os.environ.pop("MPLBACKEND", None)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    sys.exit(main())
