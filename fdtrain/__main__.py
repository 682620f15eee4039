"""`python -m fdtrain`, and `torchrun -m fdtrain`."""

import sys

from fdtrain.process import die_with_launcher, exit_with

if __name__ == "__main__":
    die_with_launcher()

    from fdtrain.cli import main

    exit_with(main(sys.argv[1:]))
