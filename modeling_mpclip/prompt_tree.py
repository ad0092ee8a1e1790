"""Compiles prompt templates into a tree of tokens. Pure data: no model, no tensor.

K prompts follow every text. Prompts share their first tokens, and a prompt and its negated twin share even more:

    The ─┬─ [APT-1] ─ of ─ this ─ image ─┬─ means ─ :            readout 1
         │                               └─ does ─ NOT ─ mean ─ :   negated readout 1
         └─ [APT-2] ─ of ─ ...

The hidden state of a prompt token depends only on the text and on the tokens before it in its prompt. So tokens that several
prompts share are computed once (ours): K = 6 prompts take 37 tokens instead of 42, with their negated twins 61 instead of 96.
The depth of a node is its position after the text. It attends to the text, to its ancestors and to itself.
"""

import re
from dataclasses import dataclass

ADAPTIVE_TOKEN = "[APT-{i}]"
RECOMPILE = "Make it anew with config.compile_prompts(tokenizer), or download the checkpoint again."
TEMPLATE = "The [APT-{i}] of this image means:"
ADAPTIVE_NAME = re.compile(r"\[APT-([^\[\]]*)\]")
MAX_ADAPTIVE_TOKENS = 1024
LARGEST_TREE = 8192  # nodes; the attention mask has a row and a column for each
NEGATED_TEMPLATE = "The [APT-{i}] of this image does NOT mean:"


def default_templates(num_prompts: int, negated: bool = False) -> list[str]:
    """The paper's templates (section 1.1), numbered from 1.

    Args:
        num_prompts: K.
        negated: return their negated twins instead.

    Returns:
        K templates, such as "The [APT-1] of this image means:".
    """
    template = NEGATED_TEMPLATE if negated else TEMPLATE
    return [template.replace("{i}", str(i)) for i in range(1, num_prompts + 1)]


def adaptive_token_names(templates: list[str]) -> list[str]:
    """Names of the adaptive tokens of some templates.

    Args:
        templates: any number of templates.

    Returns:
        `["[APT-1]", ..., "[APT-M]"]`. M is the highest number in the templates; the list is empty if they name none.

    Raises:
        ValueError: a template names [APT-0], or something between the brackets that is no number from 1 to 1024.
    """
    found = [name for template in templates for name in ADAPTIVE_NAME.findall(template)]
    if "0" in found:
        raise ValueError("Adaptive tokens are numbered from [APT-1], and a template contains [APT-0]. Start with [APT-1].")
    if bad := [name for name in found if not re.fullmatch("[1-9][0-9]{0,3}", name) or int(name) > MAX_ADAPTIVE_TOKENS]:
        raise ValueError(
            f"A template contains [APT-{bad[0][:20]}], which names no adaptive token. They are [APT-1], [APT-2] and so on, to "
            f"[APT-{MAX_ADAPTIVE_TOKENS}] at most."
        )
    numbers = [int(name) for name in found]
    return [ADAPTIVE_TOKEN.replace("{i}", str(i)) for i in range(1, max(numbers, default=0) + 1)]


@dataclass(frozen=True)
class PromptTree:
    """The token tree of K prompts and, optionally, of their negated twins.

    Attributes:
        token_ids: token id of each of the T nodes. A parent stands before its children.
        parents: index of each node's parent; -1 if the node follows the text directly.
        readouts: index of the last node of each of the K prompts. The hidden state there becomes the prompt's segment.
        negated_readouts: the same for the negated twins; empty if there are none.
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
        """T x T table: `lineage[q][k]` is True if node k is node q or one of its ancestors."""
        rows: list[list[bool]] = []
        for node, parent in enumerate(self.parents):
            row = [False] * len(self) if parent < 0 else list(rows[parent])
            row[node] = True
            rows.append(row)
        return rows

    def last_adaptive(self, adaptive_token_ids: list[int]) -> list[int]:
        """For each node the last adaptive token on its path, the node included.

        Args:
            adaptive_token_ids: ids of the M adaptive tokens.

        Returns:
            T indices from 0 to M - 1; -1 for nodes before the first adaptive token of their prompt.
        """
        number = {token_id: i for i, token_id in enumerate(adaptive_token_ids)}
        last: list[int] = []
        for token_id, parent in zip(self.token_ids, self.parents, strict=True):
            last.append(number.get(token_id, -1 if parent < 0 else last[parent]))
        return last

    def select(self, negated: bool = False, num_prompts: int | None = None) -> "PromptTree":
        """The subtree of some of the prompts.

        Args:
            negated: include the negated twins.
            num_prompts: m; keep only the first m prompts. None: all K.

        Raises:
            ValueError: negated prompts are requested and the tree has none.
        """
        if negated and not self.negated_readouts:
            raise ValueError(
                "This prompt tree has no negated prompts. Compile it with `negated_templates`, "
                "or do not request them: set negation_weight=0 and leave negated=True out."
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
        """Find the nodes of another tree in this one. Nodes with the same tokens on their path have the same hidden states.

        Args:
            subtree: a tree whose prompts are all in this tree, or are the first tokens of such prompts.

        Returns:
            For each node of `subtree` the index of the equal node in this tree.

        Raises:
            ValueError: a node of `subtree` is not in this tree.
        """
        child = {(parent, token_id): i for i, (parent, token_id) in enumerate(zip(self.parents, self.token_ids, strict=True))}
        nodes: list[int] = []
        for parent, token_id in zip(subtree.parents, subtree.token_ids, strict=True):
            here = child.get((-1 if parent < 0 else nodes[parent], token_id))
            if here is None:
                raise ValueError("The prompt tree does not contain the other tree: it lacks one of the other tree's prompts.")
            nodes.append(here)
        return nodes

    def to_dict(self) -> dict[str, list[int]]:
        """The attributes by name, as JSON values."""
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, data: dict[str, list[int]]) -> "PromptTree":
        """The tree of a dict from `to_dict`.

        Raises:
            ValueError: the dict is no tree; the message says what is wrong with it.
        """
        if not isinstance(data, dict) or not data.keys() <= cls.__dataclass_fields__.keys():
            found = list(data)[:10] if isinstance(data, dict) else f"a {type(data).__name__}"
            raise ValueError(f"prompt_tree holds {found}; expected lists by the names {', '.join(cls.__dataclass_fields__)}.")
        for name, values in data.items():
            if not isinstance(values, (list, tuple)) or any(type(value) is not int for value in values):
                raise ValueError(f"prompt_tree: {name} is no list of whole numbers. {RECOMPILE}")
        tree = cls(**{name: tuple(values) for name, values in data.items()})
        T, readouts = len(tree), (*tree.readouts, *tree.negated_readouts)
        faults = {
            f"it has {T} tokens, and {LARGEST_TREE} is the limit": T > LARGEST_TREE,
            "token_ids and parents differ in length": len(tree.parents) != T,
            "a token has a negative id": any(token_id < 0 for token_id in tree.token_ids),
            "a parent does not stand before its child": any(not -1 <= parent < i for i, parent in enumerate(tree.parents)),
            "a readout is no token of it": any(not 0 <= node < T for node in readouts),
            "some prompts have a negated twin and others do not": len(tree.negated_readouts) not in (0, len(tree.readouts)),
        }
        if found := [fault for fault, is_so in faults.items() if is_so]:
            raise ValueError(f"prompt_tree is damaged: {found[0]}. {RECOMPILE}")
        return tree


def compile_prompt_tree(tokenizer, templates: list[str], negated_templates: list[str] = ()) -> PromptTree:
    """Tokenize the templates as continuations of a text, and merge their common first tokens.

    Args:
        tokenizer: any transformers tokenizer that holds the adaptive tokens (`add_adaptive_tokens`). The prompts are tokenized
            without special tokens such as Gemma's BOS; those belong to the text, which the caller tokenizes.
        templates: K templates, all different.
        negated_templates: their K negated twins, or none.

    Raises:
        ValueError: a template is empty or occurs twice, names an adaptive token that the tokenizer does not hold, or has no
            negated twin while others have one.
    """
    if negated_templates and len(negated_templates) != len(templates):
        raise ValueError(
            f"Got {len(templates)} templates and {len(negated_templates)} negated ones; give one negated template per "
            "template, or none."
        )
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
        # A space separates text and prompt, as between two sentences. In a template, unlike in a text, [APT-1] is a token.
        ids = tokenizer(" " + template.strip(), add_special_tokens=False, split_special_tokens=False)["input_ids"]
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

    # The negated twins come after all prompts: the tree without negation is then the first part of the whole tree.
    readouts = tuple(insert(template) for template in templates)
    negated_readouts = tuple(insert(template) for template in negated_templates)
    return PromptTree(tuple(token_ids), tuple(parents), readouts, negated_readouts)


def add_adaptive_tokens(tokenizer, templates: list[str]) -> list[int]:
    """Add the adaptive tokens of some templates to a tokenizer, in place.

    Args:
        tokenizer: any transformers tokenizer.
        templates: all templates, negated ones included.

    Returns:
        The ids of [APT-1] to [APT-M], which are consecutive.

    Raises:
        ValueError: the tokenizer already holds some of them, and their ids are not consecutive.
    """
    from transformers import AddedToken

    names = adaptive_token_names(templates)
    # lstrip: a token includes the space before it. Otherwise "The [APT-1] of" would contain a token of a single space.
    tokenizer.add_tokens([AddedToken(name, lstrip=True, normalized=False, special=True) for name in names])
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    if ids != list(range(ids[0], ids[0] + len(ids))) if ids else False:
        raise ValueError(f"The adaptive tokens have the ids {ids}; they must be consecutive. Use a fresh tokenizer.")
    return ids


def refuse_other_texts(name: str, texts: list) -> None:
    """Refuse what a tokenizer cannot read.

    Args:
        name: of the texts, for the message.
        texts: what should be strings.

    Raises:
        ValueError: one is no string, or has half a character in it; the message has its place.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is {repr(text)[:80]} ({type(text).__name__}): expected a string.")
        if not text.isascii() and re.search("[\ud800-\udfff]", text):  # a surrogate: a part of an emoji that was cut in two
            raise ValueError(f"{name}[{i}] is {text[:80]!r}, with half a character in it: write the whole one, or remove it.")


def read_as_text(tokenizer):
    """Make a tokenizer read what looks like a special token in a text as the letters that it is, in place, also once saved.

    By default transformers turns "[APT-1]" in a caption into the learned token of a prompt, and "<|endoftext|>" into the end of
    a text. A caption from elsewhere could so take the place of a prompt. Tokens that the tokenizer itself adds, such as
    Gemma's BOS, are not concerned.

    Args:
        tokenizer: any transformers tokenizer.

    Returns:
        The tokenizer.
    """
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True  # what `save_pretrained` writes
    return tokenizer
