"""`python -m oncue` is `oncue`."""

from oncue.cli import main

if __name__ == "__main__":
    main()
