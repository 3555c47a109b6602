"""`invprob`, which is `python -m invprob_cli` too."""

import os
import signal


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends without a traceback."""
    if callable(signal.getsignal(signal.SIGINT)):  # else ignored, as in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from invprob_cli.main import main as run

    run()


if __name__ == "__main__":
    main()
