"""One module per command: `add_arguments(parser)` and `run(args)`, whose docstring is the command's help."""
