"""`python -m launch.sweep`."""

import sys

from fdtrain.cli import run_command
from launch.sweep import command

if __name__ == "__main__":
    hint = "; the same command with --resume goes on: finished trials are kept, others continue from their checkpoints"
    sys.exit(run_command("python -m launch.sweep", command, command.split_words(sys.argv[1:]), hint=hint))
