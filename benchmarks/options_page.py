"""Write docs/options.md: every option of `train_hf.py` with its default, legal values and help text.

    python -m benchmarks.options_page

The page is made of the declarations in modeling_mpclip/model_options.py and mpclip/training/options.py.
"""

from dataclasses import MISSING, fields
from pathlib import Path

from benchmarks.record import command_parser
from eval.tables import markdown_table
from modeling_mpclip.model_options import OPTION_NAMES, choices, range_of
from mpclip.command import start
from mpclip.files import write_text
from mpclip.training.options import DataArguments, ModelArguments, TrainingDefaults

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
HEAD = """# Options of training

Written by `python -m benchmarks.options_page` from where the options are declared: modeling_mpclip/model_options.py and
mpclip/training/options.py. Each is a key of a YAML recipe, and `--key value` on the command line. Every option of
[`transformers.TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments)
is taken too.
"""
# Title -> the class that declares the options, whether they are the model's options, and a sentence below the title.
SECTIONS = {
    "The model": (
        ModelArguments,
        OPTION_NAMES,
        "They are also the attributes of `MPCLIPConfig`, and arguments of `MPCLIPModel.from_pretrained_towers`.",
    ),
    "The towers, and which parts are trained": (ModelArguments, None, ""),
    "The data": (DataArguments, None, ""),
    "Training": (
        TrainingDefaults,
        None,
        "Options whose default differs from transformers', and options that transformers lacks.",
    ),
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, (declared, names, about) in SECTIONS.items():
        rows = [_row(declared, option) for option in fields(declared) if (option.name in OPTION_NAMES) == (names is not None)]
        text = f"## {title}\n\n" + (f"{about}\n\n" if about else "")
        parts.append(text + markdown_table(["option", "default", "values", "what it does"], rows) + "\n")
    return "\n".join(parts)


def _row(declared: type, option) -> list[str]:
    legal = ", ".join(f"`{value}`" for value in choices(declared, option.name)) or range_of(declared, option.name) or ""
    default = None if option.default is MISSING else option.default
    help_text = option.metadata["help"].replace("|", r"\|")
    return [f"`{option.name}`", "" if default is None else f"`{default}`", str(legal), help_text]


def main(argv: list[str] | None = None) -> None:
    """The command."""
    command_parser("benchmarks.options_page", __doc__).parse_args(argv)
    write_text(PAGE, page())
    print(f"written: {PAGE}")


if __name__ == "__main__":
    start(main)
