import pytest
from conftest import make_tokenizer

from modeling_mpclip import PromptTree, add_adaptive_tokens, compile_prompt_tree, default_templates
from modeling_mpclip.prompt_tree import adaptive_token_names


def compiled(tokenizer, K: int = 6, negated: bool = True) -> PromptTree:
    templates, twins = default_templates(K), default_templates(K, negated=True) if negated else []
    add_adaptive_tokens(tokenizer, [*templates, *twins])
    return compile_prompt_tree(tokenizer, templates, twins)


def spelled(tree: PromptTree, node: int, tokenizer) -> str:
    ids = []
    while node >= 0:
        ids.append(tree.token_ids[node])
        node = tree.parents[node]
    return tokenizer.decode(ids[::-1])


@pytest.mark.parametrize("bos", [False, True])
def test_every_readout_spells_its_template(bos):
    tokenizer = make_tokenizer(bos)
    tree = compiled(tokenizer)
    for k in range(6):
        # [APT-i] takes the space before it, so decoding leaves it out.
        assert spelled(tree, tree.readouts[k], tokenizer) == f" The[APT-{k + 1}] of this image means:"
        assert spelled(tree, tree.negated_readouts[k], tokenizer) == f" The[APT-{k + 1}] of this image does NOT mean:"


def test_shared_stems_stand_once(tokenizer):
    tree = compiled(tokenizer)
    paths = {tuple(_path(tree, node)) for node in range(len(tree))}
    assert len(paths) == len(tree)
    roots = [node for node, parent in enumerate(tree.parents) if parent < 0]
    assert len(roots) == 1
    separate = sum(len(_path(tree, node)) for node in tree.readouts + tree.negated_readouts)
    assert len(tree) < 0.75 * separate
    assert all(parent < node for node, parent in enumerate(tree.parents))


def test_depth_and_lineage(tokenizer):
    tree = compiled(tokenizer)
    for node in range(len(tree)):
        path = _path(tree, node)
        assert tree.depths[node] == len(path) - 1
        assert [i for i, seen in enumerate(tree.lineage[node]) if seen] == sorted(path)


def test_select_keeps_paths_and_drops_the_rest(tokenizer):
    tree = compiled(tokenizer)
    alone = compiled(make_tokenizer(), negated=False)
    assert tree.select() == alone
    first = tree.select(negated=True, num_prompts=1)
    assert [spelled(first, n, tokenizer) for n in (*first.readouts, *first.negated_readouts)] == [
        spelled(tree, n, tokenizer) for n in (tree.readouts[0], tree.negated_readouts[0])
    ]
    assert len(first) < len(tree)
    with pytest.raises(ValueError, match="no negated prompts"):
        alone.select(negated=True)


def test_locate_finds_a_smaller_tree_in_a_larger_one(tokenizer):
    tree, single = compiled(tokenizer), compiled(make_tokenizer(), K=1, negated=False)
    nodes = tree.locate(single)
    assert [tree.token_ids[n] for n in nodes] == list(single.token_ids)
    assert nodes[single.readouts[0]] == tree.readouts[0]
    with pytest.raises(ValueError, match="does not contain"):
        single.locate(tree)


def test_last_adaptive_starts_at_the_token_and_goes_on_below(tokenizer):
    tree = compiled(tokenizer, K=2)
    ids = tokenizer.convert_tokens_to_ids(["[APT-1]", "[APT-2]"])
    last = tree.last_adaptive(ids)
    assert last[0] == -1  # the shared stem
    for k in range(2):
        assert last[tree.readouts[k]] == last[tree.negated_readouts[k]] == k
        assert last[tree.token_ids.index(ids[k])] == k


def test_round_trip_through_json_types(tokenizer):
    tree = compiled(tokenizer)
    assert PromptTree.from_dict(tree.to_dict()) == tree


def test_adding_tokens_twice_changes_nothing(tokenizer):
    first = add_adaptive_tokens(tokenizer, default_templates(3))
    assert add_adaptive_tokens(tokenizer, default_templates(3)) == first
    assert tokenizer("the [APT-2] of", add_special_tokens=False)["input_ids"].count(first[1]) == 1


def test_refusals(tokenizer):
    with pytest.raises(ValueError, match=r"does not hold the adaptive tokens \[APT-1\]"):
        compile_prompt_tree(tokenizer, default_templates(1))
    add_adaptive_tokens(tokenizer, default_templates(2))
    with pytest.raises(ValueError, match="are the same tokens"):
        compile_prompt_tree(tokenizer, ["The [APT-1] cat"] * 2)
    with pytest.raises(ValueError, match="2 templates and 1 negated"):
        compile_prompt_tree(tokenizer, default_templates(2), default_templates(1, negated=True))
    with pytest.raises(ValueError, match="has no token"):
        compile_prompt_tree(make_tokenizer_without_space(), [""])
    with pytest.raises(ValueError, match="numbered from"):
        adaptive_token_names(["The [APT-0]"])
    for name in ("01", "٣", "x", "", "1025", "9" * 5000):
        with pytest.raises(ValueError, match=rf"contains \[APT-{name[:20]}\], which names no adaptive token"):
            adaptive_token_names([f"The [APT-{name}]"])


def make_tokenizer_without_space():
    """Stands in for a tokenizer to which the joining space alone is nothing."""

    class Silent:
        def get_vocab(self):
            return {}

        def __call__(self, text, **kwargs):
            return {"input_ids": []}

    return Silent()


def _path(tree: PromptTree, node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = tree.parents[node]
    return path[::-1]
