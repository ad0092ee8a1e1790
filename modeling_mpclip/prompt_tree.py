"""Prompt templates, compiled once into a tree of tokens. Pure data: no model, no tensor.

K prompts follow every text. They share stems, and so do a prompt and its negated twin:

    The ─┬─ [APT-1] ─ of ─ this ─ image ─┬─ means ─ :            readout 1
         │                               └─ does ─ NOT ─ mean ─ :   negated readout 1
         └─ [APT-2] ─ of ─ ...

A token's hidden state depends on its ancestors alone, so a stem that several prompts share is computed once (ours): K = 6
prompts are 37 tokens instead of 42, with their negated twins 61 instead of 96. A node's depth is its position after
the text, and its attention reaches the text, its ancestors and itself.
"""

import re
from dataclasses import dataclass

ADAPTIVE_TOKEN = "[APT-{i}]"
TEMPLATE = "The [APT-{i}] of this image means:"
NEGATED_TEMPLATE = "The [APT-{i}] of this image does NOT mean:"


def default_templates(num_prompts: int, negated: bool = False) -> list[str]:
    """The paper's K templates (section 1.1), or their negated twins, numbered from 1."""
    template = NEGATED_TEMPLATE if negated else TEMPLATE
    return [template.replace("{i}", str(i)) for i in range(1, num_prompts + 1)]


def adaptive_token_names(templates: list[str]) -> list[str]:
    """`["[APT-1]", ..., "[APT-M]"]`, M being the highest number the templates use (0 names when they use none)."""
    numbers = [int(n) for template in templates for n in re.findall(r"\[APT-(\d+)\]", template)]
    if 0 in numbers:
        raise ValueError("Adaptive tokens are numbered from [APT-1]; a template contains [APT-0].")
    return [ADAPTIVE_TOKEN.replace("{i}", str(i)) for i in range(1, max(numbers, default=0) + 1)]


@dataclass(frozen=True)
class PromptTree:
    """The token tree of K prompts and, optionally, of their negated twins.

    Attributes:
        token_ids: token id of each of the T nodes; a parent always stands before its children.
        parents: index of each node's parent, -1 where the parent is the text's last token.
        readouts: the node at which prompt k ends, for each of the K prompts.
        negated_readouts: the same for the negated twins; empty without them.
    """

    token_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    readouts: tuple[int, ...] = ()
    negated_readouts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def depths(self) -> list[int]:
        """Distance of each node from the text: 0 for the first token after it."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def lineage(self) -> list[list[bool]]:
        """(T, T) table: `lineage[q][k]` is True where node k is node q or one of its ancestors."""
        rows: list[list[bool]] = []
        for node, parent in enumerate(self.parents):
            row = [False] * len(self) if parent < 0 else list(rows[parent])
            row[node] = True
            rows.append(row)
        return rows

    def last_adaptive(self, adaptive_token_ids: list[int]) -> list[int]:
        """Index of the last adaptive token at or above each node, -1 where there is none (the shared stem)."""
        number = {token_id: i for i, token_id in enumerate(adaptive_token_ids)}
        last: list[int] = []
        for token_id, parent in zip(self.token_ids, self.parents, strict=True):
            last.append(number.get(token_id, -1 if parent < 0 else last[parent]))
        return last

    def select(self, negated: bool = False, num_prompts: int | None = None) -> "PromptTree":
        """The subtree of the first `num_prompts` prompts (of all for None), with or without their negated twins."""
        if negated and not self.negated_readouts:
            raise ValueError(
                "This prompt tree has no negated prompts. Compile it with `negated_templates`, "
                "or leave negation out (negation_weight=0, no negated=True)."
            )
        readouts = self.readouts[:num_prompts]
        negated_readouts = self.negated_readouts[:num_prompts] if negated else ()
        wanted = (*readouts, *negated_readouts)
        kept: set[int] = set()
        for node in wanted:
            while node >= 0 and node not in kept:
                kept.add(node)
                node = self.parents[node]
        index = {old: new for new, old in enumerate(sorted(kept))} | {-1: -1}
        return PromptTree(
            token_ids=tuple(self.token_ids[node] for node in sorted(kept)),
            parents=tuple(index[self.parents[node]] for node in sorted(kept)),
            readouts=tuple(index[node] for node in readouts),
            negated_readouts=tuple(index[node] for node in negated_readouts),
        )

    def locate(self, subtree: "PromptTree") -> list[int]:
        """For each node of `subtree` the node here with the same tokens on its path; states of both are the same.

        Raises:
            ValueError: a node is not found.
        """
        child = {(parent, token_id): i for i, (parent, token_id) in enumerate(zip(self.parents, self.token_ids, strict=True))}
        nodes: list[int] = []
        for parent, token_id in zip(subtree.parents, subtree.token_ids, strict=True):
            here = child.get((-1 if parent < 0 else nodes[parent], token_id))
            if here is None:
                raise ValueError("The prompt tree does not contain the other one: a prompt of that is not a prompt of this.")
            nodes.append(here)
        return nodes

    def to_dict(self) -> dict[str, list[int]]:
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, data: dict[str, list[int]]) -> "PromptTree":
        return cls(**{name: tuple(values) for name, values in data.items()})


def compile_prompt_tree(tokenizer, templates: list[str], negated_templates: list[str] = ()) -> PromptTree:
    """Tokenize the templates as continuations of a text and merge their common beginnings.

    Args:
        tokenizer: any transformers tokenizer that already holds the adaptive tokens. Special tokens (Gemma's BOS) belong
            to the text, which the caller tokenizes as usual; the prompts are tokenized without them.
        templates: K templates, each a different one.
        negated_templates: none, or K.

    Raises:
        ValueError: a template is empty, occurs twice, or names an adaptive token the tokenizer does not hold.
    """
    if negated_templates and len(negated_templates) != len(templates):
        raise ValueError(f"Got {len(templates)} templates and {len(negated_templates)} negated ones; give one for each.")
    known = tokenizer.get_vocab()
    missing = [name for name in adaptive_token_names([*templates, *negated_templates]) if name not in known]
    if missing:
        raise ValueError(
            f"The tokenizer does not hold the adaptive tokens {', '.join(missing)}. "
            "Add them first: add_adaptive_tokens(tokenizer, templates)."
        )

    token_ids: list[int] = []
    parents: list[int] = []
    node_of: dict[tuple[int, int], int] = {}  # (parent, token id) -> node
    ends: dict[int, str] = {}  # readout -> its template

    def insert(template: str) -> int:
        # A space joins text and prompt, as between two sentences.
        ids = tokenizer(" " + template.strip(), add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"The template {template!r} has no token; a prompt needs at least one.")
        node = -1
        for token_id in ids:
            if (node, token_id) not in node_of:
                node_of[node, token_id] = len(token_ids)
                token_ids.append(token_id)
                parents.append(node)
            node = node_of[node, token_id]
        if node in ends:
            raise ValueError(f"The templates {ends[node]!r} and {template!r} are the same tokens; make them differ.")
        ends[node] = template
        return node

    # All prompts first, then what the negated twins add: the tree without negation is the head of the whole tree.
    readouts = tuple(insert(template) for template in templates)
    negated_readouts = tuple(insert(template) for template in negated_templates)
    return PromptTree(tuple(token_ids), tuple(parents), readouts, negated_readouts)


def add_adaptive_tokens(tokenizer, templates: list[str]) -> list[int]:
    """Add the templates' [APT-i] to the tokenizer (in place) and return their M ids, which are consecutive.

    `lstrip` lets a token take the space before it, so that "The [APT-1] of" leaves no stray space piece.
    """
    from transformers import AddedToken

    names = adaptive_token_names(templates)
    tokenizer.add_tokens([AddedToken(name, lstrip=True, normalized=False, special=True) for name in names])
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    if ids != list(range(ids[0], ids[0] + len(ids))) if ids else False:
        raise ValueError(f"The adaptive tokens have the ids {ids}; they must be consecutive. Use a fresh tokenizer.")
    return ids
