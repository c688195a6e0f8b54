"""``python -m rayvec``: the command line, for when its script is not on the path."""

from rayvec.cli import main

if __name__ == "__main__":
    main()
