"""`python -m ventoux` is the command `ventoux`."""

from ventoux.cli import main

if __name__ == "__main__":
    main()
