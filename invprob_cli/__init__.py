"""The command line of invprob."""

import os
import signal
import sys
from pathlib import Path

if Path(*sys.argv[:1]).stem in ("invprob", "-m") and callable(signal.getsignal(signal.SIGINT)):
    # Ctrl-C while the commands are imported ends without a traceback; `main` takes this back
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
