"""`python -m piti.cli`, as launchers start it."""

from piti.cli.app import main

if __name__ == "__main__":
    main()
