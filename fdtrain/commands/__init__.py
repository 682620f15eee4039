"""The commands of `python -m fdtrain`, one module each; only what a command needs is imported, when it runs."""
