"""Templates of zero-shot classification: sentences in which {} stands for the name of a class.

A class is embedded once by each template. The mean of these embeddings is less dependent on the wording than a single one
(Radford et al. 2021, section 3.1.4).
"""

import importlib.util
import string
from pathlib import Path

# Ours: photographs, drawings, near and far, one and several.
OURS = (
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "a close view of a {}",
    "a small {} in the distance",
    "several of them: {}",
    "this shows a {}",
)
NAMED = ("ours", "imagenet80")


def read_templates(given: str) -> list[str]:
    """Templates by name, or from a file.

    Args:
        given: "ours"; "imagenet80", the 80 templates for ImageNet of the package open_clip; or a text file with a template per
            line, in which {} or {c} stands for the class.

    Returns:
        The templates, with {} for the class.

    Raises:
        ImportError: open_clip is not installed.
        FileNotFoundError: there is no such file.
        ValueError: a line of the file is no template.
    """
    if given == "ours":
        return list(OURS)
    if given == "imagenet80":
        return _imagenet_templates()
    file = Path(given)
    if not file.is_file():
        raise FileNotFoundError(
            f"templates {given!r}: expected {', '.join(NAMED)}, or a text file with a template per line, such as "
            "'a photo of a {}'"
        )
    from mpclip.data.forms.text_files import read_text

    templates = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(line) if name is not None]
        except ValueError:
            fields = []
        if fields not in ([""], ["c"]):
            raise ValueError(
                f"{file}, line {number}: found {line[:80]!r}, expected a text with one {{}} for the name of the class"
            )
        templates.append(line.strip().replace("{c}", "{}"))
    if not templates:
        raise ValueError(f"{file} has no templates: expected one per line, such as 'a photo of a {{}}'")
    return templates


def _imagenet_templates() -> list[str]:
    """The 80 templates of open_clip. Their file alone is run: the package would import torchvision."""
    package = importlib.util.find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    file = Path(folders[0], "zero_shot_metadata.py") if folders else None
    if file is None or not file.is_file():
        raise ImportError(
            "templates imagenet80 come with the package open_clip, which is not installed. "
            "Run: pip install --no-deps open-clip-torch. Or write them into a file, a template per line"
        )
    spec = importlib.util.spec_from_file_location("open_clip_zero_shot_metadata", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [template("{}") for template in module.OPENAI_IMAGENET_TEMPLATES]
