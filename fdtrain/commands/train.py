"""`python -m fdtrain [train]`."""

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from fdtrain.config import Config


def add_arguments(parser: ArgumentParser) -> None:
    """Every setting, and a file of them."""
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings, such as configs/meso4.yaml.")
    parser.add_class_arguments(Config, None)


def config_of(arguments: Namespace) -> Config:
    """The configuration, not validated yet."""
    return Config(**{key: value for key, value in vars(arguments).items() if key != "config"})


def run(arguments: Namespace) -> None:
    """Train a detector on one shard set."""
    config = config_of(arguments)
    config.validate()

    from fdtrain.process import process_began
    from fdtrain.stopping import StopRequested
    from fdtrain.train import train

    try:
        train(config, began=process_began())
    except StopRequested as stop:
        # Somebody who presses Ctrl-C wants everything around the run to end as well. Otherwise the run did what it was
        # told: an error would make torchrun start it again.
        if stop.is_interrupt:
            raise KeyboardInterrupt from stop
