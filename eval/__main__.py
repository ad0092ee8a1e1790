"""Measures a trained model.

usage: python -m eval COMMAND [options]
       python -m eval COMMAND --help
"""

import importlib
import sys

# Each command is a module with `main(arguments)`; the first line of its docstring is its line in the help.
COMMANDS = {
    "retrieval": "eval.retrieval",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. Exits with code 2 and the list of commands where none of that name exists."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(__doc__.strip(), "\n\ncommands:", sep="")
        for name, module in COMMANDS.items():
            print(f"  {name:<12} {importlib.import_module(module).__doc__.splitlines()[0]}")
    elif command in COMMANDS:
        importlib.import_module(COMMANDS[command]).main(arguments[1:])
    else:
        print(f"python -m eval: no command {command!r}; expected one of: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
