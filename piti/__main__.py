"""`python -m piti`, as launchers such as torchrun start it."""

from piti.cli.app import main

if __name__ == "__main__":
    main()
