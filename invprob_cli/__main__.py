"""`python -m invprob_cli` is `invprob`."""

from invprob_cli.main import main

if __name__ == "__main__":
    main()
