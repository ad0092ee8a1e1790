"""Draw docs/prompt_tree.svg and docs/prompt_mask.svg: how prompts follow a text, and what each of their tokens attends to.

    python -m benchmarks.prompt_figures

Nothing in them is drawn by hand. The tree is what `compile_prompt_tree` makes of two of the paper's templates and their
negated twins. The cells are those of `prompt_attention_mask`, with the positions of `prompt_position_ids`. The tokenizer knows
whole words, so that the figures can be read.
"""

from html import escape
from pathlib import Path

from benchmarks.record import command_parser
from mpclip.command import start
from mpclip.files import write_text

DOCS = Path(__file__).parent.parent / "docs"
TEXT = "a red boat"
PROMPTS = 2
COLOURS = ("#2f6fb3", "#d9822b")  # of prompt 1 and of prompt 2, as in docs/method.svg
INK, PALE, EDGE = "#222", "#eef1f5", "#c9d1db"
BOX, GAP, ROW = (70, 26), 12, 46  # width and height of a token, distance to the next, height of a row, in pixels
CELL = 19


def word_tokenizer(templates: list[str]):
    """A tokenizer whose tokens are the words of `TEXT` and of the templates."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = pre_tokenizers.Whitespace().pre_tokenize_str(" ".join([TEXT, *templates]))
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["pad", *(word for word, _ in words)]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="pad"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="pad")


class Example:
    """`TEXT` with one column of padding, followed by the tree of `PROMPTS` prompts and their negated twins.

    Attributes:
        tree: the [`PromptTree`] of T nodes.
        tokens: the words of the N + T columns, padding included.
        positions: the position of each column.
        mask: N + T rows of N + T booleans, True where the row attends to the column.
        prompt_of: for each node the index of the only prompt that uses it; None for nodes that prompts share.
    """

    def __init__(self):
        import torch

        from modeling_mpclip.prompt_attention import prompt_attention_mask, prompt_position_ids
        from modeling_mpclip.prompt_tree import add_adaptive_tokens, compile_prompt_tree, default_templates

        templates, twins = default_templates(PROMPTS), default_templates(PROMPTS, negated=True)
        tokenizer = word_tokenizer([*templates, *twins])
        add_adaptive_tokens(tokenizer, [*templates, *twins])
        self.tree = compile_prompt_tree(tokenizer, templates, twins)
        self.words = TEXT.split()
        attended = torch.tensor([[1] * len(self.words) + [0]])  # (1, N)
        self.tokens = [*self.words, "padding", *tokenizer.convert_ids_to_tokens(list(self.tree.token_ids))]
        self.positions = prompt_position_ids(attended, self.tree)[0].tolist()  # (N + T,)
        self.mask = prompt_attention_mask(attended, self.tree)[0, 0].tolist()  # (N + T, N + T)
        self.first = len(self.tokens) - len(self.tree)  # N, the column of the first node
        self.written_out = sum(len(tokenizer(" " + text)["input_ids"]) for text in (*templates, *twins))
        users: list[set[int]] = [set() for _ in self.tree.parents]
        for readouts in (self.tree.readouts, self.tree.negated_readouts):
            for prompt, readout in enumerate(readouts):
                for node, is_seen in enumerate(self.tree.lineage[readout]):
                    users[node] |= {prompt} if is_seen else set()
        self.prompt_of = [next(iter(used)) if len(used) == 1 else None for used in users]

    def colour(self, column: int) -> str:
        """Of the prompt that alone uses a column; grey for text, padding and shared nodes."""
        prompt = None if column < self.first else self.prompt_of[column - self.first]
        return "#8a94a3" if prompt is None else COLOURS[prompt]


def _words(x: float, y: float, words: object, size: int = 13, anchor: str = "start", colour: str = INK, more: str = "") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(str(words))}</text>'
    )


def _box(x: float, y: float, words: str, edge: str, fill: str, colour: str = INK) -> str:
    width, height = BOX
    box = f'<rect x="{x:g}" y="{y - height / 2:g}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{edge}"/>'
    return box + "\n" + _words(x + width / 2, y + 4.5, words, 12, "middle", colour)


def _sheet(width: float, height: float, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
    head += f'font-family="Helvetica, Arial, DejaVu Sans, sans-serif"><title>{escape(title)}</title>'
    return "\n".join([head, f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>', *parts, "</svg>"]) + "\n"


def tree_figure(example: Example) -> str:
    """The SVG of the token tree: a column for each position, a row for each readout."""
    tree, words = example.tree, example.words
    ends = [readout for pair in zip(tree.readouts, tree.negated_readouts, strict=True) for readout in pair]
    row: dict[int, float] = {readout: i for i, readout in enumerate(ends)}
    for node in sorted(range(len(tree)), reverse=True):  # children stand behind their parents
        below = [row[child] for child, parent in enumerate(tree.parents) if parent == node]
        row.setdefault(node, sum(below) / len(below) if below else 0)
    step, top = BOX[0] + GAP, 96

    def place(position: int, at: float) -> tuple[float, float]:
        return 24 + position * step, top + at * ROW

    middle, last = (len(ends) - 1) / 2, max(example.positions)
    title = f"{len(tree)} tokens in place of {example.written_out}: a text, and the tree of {PROMPTS} prompts with their twins"
    parts = [_words(24, 30, title, 16, more=' font-weight="600"'), _words(24, 56, "position", 11, colour="#777")]
    parts += [_words(place(x, 0)[0] + BOX[0] / 2, 56, x, 11, "middle", "#777") for x in range(1, last + 1)]
    for i, word in enumerate(words):
        x, y = place(i, middle)
        parts += [_box(x, y, word, EDGE, PALE)]
        if i:
            parts += [f'<path d="M{x - GAP:g} {y:g}H{x:g}" stroke="#888" fill="none"/>']
    for node, parent in enumerate(tree.parents):
        column = example.first + node
        x, y = place(example.positions[column], row[node])
        x0, y0 = place(len(words) - 1, middle) if parent < 0 else place(example.positions[example.first + parent], row[parent])
        colour, is_end = example.colour(column), node in ends
        parts += [f'<path d="M{x0 + BOX[0]:g} {y0:g}L{x:g} {y:g}" stroke="{colour}" fill="none"/>']
        parts += [_box(x, y, example.tokens[column], colour, colour if is_end else "#fff", "#fff" if is_end else INK)]
        if is_end:
            prompt = example.prompt_of[node] + 1
            told = f"segment {prompt}" if node in tree.readouts else f"negated segment {prompt}"
            parts += [_words(x + BOX[0] + 8, y + 4.5, told, 12, colour=colour)]
    height = top + (len(ends) - 1) * ROW + 44
    return _sheet(24 + (last + 1) * step + 130, height, "The token tree of the prompts", parts)


def mask_figure(example: Example) -> str:
    """The SVG of the mask: a row for each token, and a filled cell in each column that it attends to."""
    left, top, size = 150, 130, len(example.tokens)
    ends = {example.first + node for node in (*example.tree.readouts, *example.tree.negated_readouts)}
    parts = [_words(16, 30, "Each row attends to the filled columns", 16, more=' font-weight="600"')]
    parts += [_words(left - 34, top - 8, "token", 11, "end", "#777"), _words(left - 10, top - 8, "pos.", 11, "end", "#777")]
    for i, token in enumerate(example.tokens):
        middle, weight = (i + 0.5) * CELL, ' font-weight="700"' if i in ends else ""
        colour = example.colour(i) if i >= example.first else INK
        turned = f' transform="rotate(-60 {left + middle + 4:g} {top - 6})"' + weight
        parts += [_words(left - 34, top + middle + 4, token, 12, "end", colour, weight)]
        parts += [_words(left - 10, top + middle + 4, example.positions[i], 11, "end", "#777")]
        parts += [_words(left + middle + 4, top - 6, token, 12, "start", colour, turned)]
        filled = "".join(
            f"M{left + j * CELL} {top + i * CELL}h{CELL}v{CELL}h-{CELL}z" for j in range(size) if example.mask[i][j]
        )
        parts += [f'<path d="{filled}" fill="{example.colour(i)}"/>']
    end, edge = size * CELL, example.first * CELL
    lines = "".join(f"M{left + x} {top}v{end}M{left} {top + x}h{end}" for x in range(0, end + 1, CELL))
    parts += [f'<path d="{lines}" stroke="{EDGE}" stroke-width="0.6"/>']
    parts += [f'<path d="M{left + edge} {top}v{end}M{left} {top + edge}h{end}" stroke="{INK}" stroke-width="1.4"/>']
    told = "Text and shared tokens: grey. Bold: the tokens whose last state is read."
    parts += [_words(16, top + end + 26, told, 12, colour="#555")]
    return _sheet(left + end + 50, top + end + 42, "The prompt-wise attention mask", parts)


def figures() -> dict[Path, str]:
    """Each file with its SVG."""
    example = Example()
    return {DOCS / "prompt_tree.svg": tree_figure(example), DOCS / "prompt_mask.svg": mask_figure(example)}


def main(argv: list[str] | None = None) -> None:
    """The command."""
    command_parser("benchmarks.prompt_figures", __doc__).parse_args(argv)
    for file, drawn in figures().items():
        write_text(file, drawn)
        print(f"written: {file}")


if __name__ == "__main__":
    start(main)
