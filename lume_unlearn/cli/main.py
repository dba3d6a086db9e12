"""The command `lume-unlearn`: find the command's module, read its options, run it, and report errors in one line."""

import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, metadata

from lume_tasks.errors import DataError, print_any_letter, visible
from lume_unlearn.cli import COMMANDS
from lume_unlearn.errors import ConfigError, Interrupted

HELP = """Machine unlearning of language models, scored by lm-eval.

lume-unlearn COMMAND [options]     (lume-unlearn COMMAND --help lists them; --version prints the version)
lume-tasks prepare                 (makes rows from your own files: CSV, XLSX, JSON, chats, texts)
lm_eval --tasks lume               (scores a model; lume_rows scores your own rows)

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0, or what the command returns (its ``EXIT_STATUS``). After a message on
        stderr: 2 for options or files that cannot work, 128 + N for signal N.
    """
    command, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    print_any_letter()
    try:
        try:
            return dispatch(command, words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `lume-unlearn methods | head` closes the pipe early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except (ConfigError, DataError) as error:
        message, status = str(error), 2
    except Interrupted as error:
        message, status = str(error), error.code
    except KeyboardInterrupt:
        message, status = "stopped by SIGINT without saving", 130
        if command in ("run", "finetune"):
            message += "; --resume continues from the last checkpoint"
        elif command in ("audit", "compare", "forget"):
            message = "stopped; finished work is kept in the output folder: give the same command again to continue"
    print(visible(f"lume-unlearn {command}: {message}"), file=sys.stderr)
    return status


def dispatch(command: str, words: Sequence[str]) -> int:
    """Print help or version, or run a command with its options; return the exit status.

    Raises:
        ConfigError: there is no such command, or the options cannot work.
    """
    if command in ("", "-h", "--help"):
        print(HELP + "\n".join(f"  {name:<14}{title}" for name, title in COMMANDS.items()))
        return 0 if command else 2
    if command == "--version":
        print(f"lume-unlearn {metadata.version('lume-unlearning')}")
        return 0
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, 1)
        raise ConfigError(f"no such command; {f'did you mean {near[0]}?' if near else 'see lume-unlearn --help'}")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds between two lines of a progress bar in a log file
    from lume_unlearn.cli.parsing import parse

    # PEFT reads this attribute of every model, and transformers calls it deprecated; users can do nothing about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    # PEFT looks for the vocabulary of an adapter's base, which may be the folder of an adapter.
    warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
    module = import_module(f"{__package__}.{command}")
    return module.execute(parse(command, module, words)) or 0
