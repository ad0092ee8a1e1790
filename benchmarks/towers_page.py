"""Write docs/towers.md: the language models and vision encoders that serve as towers.

    python -m benchmarks.towers_page

The page is made of the tables in modeling_mpclip/family_table.py and modeling_mpclip/vision_families.py.
"""

from pathlib import Path

from benchmarks.record import command_parser
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import write_text

PAGE = Path(__file__).parent.parent / "docs" / "towers.md"
TEXT = """# Towers

Written by `python -m benchmarks.towers_page`. "Type" is the `model_type` in a checkpoint's config. An older transformers lacks
some types. A model of another type is refused.

## Text towers

`tests/test_text_families.py::test_one_pass_equals_separate_passes` compares every family with separate passes of the untouched
model, one per text and prompt: values and gradients, in float32, with padding on both sides and texts longer than the attention
windows. There are three ways to the same result:

* **tree**: one pass over the text and the tree of all prompts. Text and shared beginnings of prompts run once. It has
  everything: `adaptive_tokens="boundary"`, cached states, ONNX graphs, hidden states and attentions.
* **branches**: the text once, then all prompts as a batch that continues from its cache. Slower. For models that mix tokens by
  more than attention masks: recurrent states, convolutions, attention chunks, inputs per layer. Needs
  `adaptive_tokens="input"`. States are not cached between steps, and there is no ONNX graph.
* **rows**: as "branches", but every prompt runs with a text of its own. For models that cannot continue a cache by several
  tokens. "branches" also runs so under gradient checkpointing, in several processes and in compiled graphs.

A vision-language checkpoint such as Qwen3-VL, Gemma 3 or SmolVLM is a text tower by its language model, which is found in it.
Its type is that of `config.get_text_config()`: SmolVLM's is `llama`.
"""
VISION = """## Vision towers

`tests/test_vision_families.py::test_tokens_gradients_and_checkpoint` compares every family with the untouched encoder: its
tokens, in evaluation and in training mode; a gradient for every trained weight; the embedding after saving and loading. The
encoder of a dual encoder such as CLIP, or of a vision-language model such as Gemma 3 or LLaVA, is found in its checkpoint. What
an encoder returns is one of:

* **tokens**, which contain their positions. The special tokens come first: class tokens, registers, DeiT's distillation token.
  `image_tokens="patches"` leaves them out of the pooling; maps never show them.
* **map**: the feature map of a CNN or a hierarchical transformer. Its places become tokens, normalised, with fixed sinusoidal
  positions. **pooled and map**: the same, behind a mean that is left out.
* **patches** that the image processor cuts in the proportions of each picture, padded and with a mask. They are embedded and
  trained like pixels, also from cached tokens. Videos, maps and ONNX graphs need a checkpoint of fixed resolution, such as
  google/siglip2-base-patch16-256.

Nothing in an encoder is random but dropout and stochastic depth: ViT-MAE masks no patches, and DINOv3 and Sapiens 2 keep their
positions in training.

Video encoders are refused, because they embed clips of a fixed length:
{videos}.
With an image encoder `get_video_features` pools the tokens of all frames.
"""


def page() -> str:
    """The whole page."""
    from modeling_mpclip.family_table import FAMILIES  # imports torch, which the help does without
    from modeling_mpclip.vision_families import VIDEO_ENCODERS, VISION_FAMILIES

    texts = [[f"`{name}`", family.models, family.path] for name, family in FAMILIES.items()]
    pictures = [
        [f"`{name}`", family.models, family.output, _special_tokens(family.class_tokens, family.other_tokens)]
        for name, family in VISION_FAMILIES.items()
    ]
    return "\n".join(
        [
            TEXT,
            markdown_table(["type", "models", "path"], texts),
            "",
            VISION.format(videos=", ".join(VIDEO_ENCODERS.values())),
            markdown_table(["type", "models", "what it gives", "special tokens"], pictures),
            "",
        ]
    )


def _special_tokens(class_tokens: int, other_tokens: int | str) -> str:
    """How many tokens come before the patches: numbers, and fields of the config that have them."""
    counts = {"class": class_tokens, "other": other_tokens}
    return ", ".join(f"{count} {kind}" if isinstance(count, int) else f"`{count}`" for kind, count in counts.items() if count)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    command_parser("benchmarks.towers_page", __doc__).parse_args(argv)
    write_text(PAGE, page())
    print(f"written: {PAGE}")


if __name__ == "__main__":
    start(main)
