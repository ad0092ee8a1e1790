"""Recipes: what YAML reads otherwise than it was meant is refused in one line with file, line, option and what to write."""

import re

import pytest

from mpclip.training.command_line import parse_options


def parse(folder, content: str | bytes, *argv: str):
    recipe = folder / "recipe.yaml"
    recipe.write_bytes(content if isinstance(content, bytes) else content.encode())
    return parse_options([str(recipe), *argv, "--output_dir", str(folder / "out")])


@pytest.mark.parametrize(
    "content, line, message",
    [
        (
            "seed: 1\neval_strategy: no",
            2,
            "eval_strategy: got 'no', which YAML reads as true or false, .* Write \"no\" in quotes",
        ),
        ("eval_split: off", 1, "eval_split: got 'off', .*expected a text. Write \"off\" in quotes"),
        ("text_pooling: yes", 1, "text_pooling: got 'yes', .*expected a text"),
        ("adaptive_init: [a, no]", 1, "adaptive_init: got 'no', .*Write \"no\" in quotes"),
        ("seed: yes", 1, "seed: got 'yes', .*expected a number"),
        ("learning_rate: {text: 1}", 1, "learning_rate: got a mapping, expected one value"),
        ("learning_rate: [1, 2]", 1, "learning_rate: got a list of 2, expected one value"),
        ("templates: [[a]]", 1, "templates: got a list of 1 in the list, expected a text"),
        ("num_prompts: 3\n\tseed: 1", 2, "there is a tab. Use spaces instead"),
        ("seed: 1\n5: x", 2, "got '5', a number, expected the name of an option"),
        ("no: 1", 1, "got 'no', which YAML reads as true or false, expected the name of an option"),
        ("seed: 1\nnum_prompts: 3\nseed: 2", 3, "seed is given a second time, the first is on line 1"),
        ("num_train_epochs: ten", 1, "num_train_epochs: invalid float value: 'ten'"),
        ("num_prompts: 2.5", 1, "num_prompts: invalid int value: '2.5'"),
        ("text_tuning: lsat", 1, "text_tuning: invalid choice: 'lsat' .*'last'"),
        ("cache_states: 5", 1, "cache_states: .*expected one of yes/no, true/false"),
        ("seed: 1\ntemplates: The [APT-1]: x", 2, r"this is not YAML \(mapping values .*texts with a colon"),
        ("# none\n\nlearnin_rate: 1", 3, "Did you mean 'learning_rate'"),
    ],
)
def test_a_value_of_another_kind_is_refused_where_it_stands(content, line, message, tmp_path):
    with pytest.raises(ValueError, match=message) as refusal:
        parse(tmp_path, content)
    assert f"recipe.yaml, line {line}" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "recipe.yaml is empty. Write one `key: value` per line"),
        ("# only a comment\n", "recipe.yaml is empty"),
        ("- a", "recipe.yaml must be a mapping of option to value"),
        (b"output_dir: caf\xe9", "recipe.yaml is not UTF-8 text .*Save it as UTF-8"),
        (b"seed: \x00", "recipe.yaml is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, content)


def test_a_recipe_behind_an_option_is_told(tmp_path):
    with pytest.raises(ValueError, match=re.escape("The recipe late.yaml stands behind an option. Give recipes first")):
        parse(tmp_path, "seed: 1", "--output_dir", str(tmp_path), "late.yaml")


def test_what_is_meant_arrives(tmp_path):
    options = parse(
        tmp_path,
        "\ufeffeval_strategy: 'no'\nload_best_model_at_end: no\nlearning_rate: 1e-3\nrun_name: 010\nseed: 1_000\n"
        "negated_templates: []\n"
        "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\nresume_from_checkpoint: false\n"
        "templates: ['-: [APT-1]']\ntrain_split: '-x'\nnum_prompts: 1\neval_split: null\n",
    )
    training = options.training
    assert training.eval_strategy == "no" and training.load_best_model_at_end is False and training.learning_rate == 1e-3
    assert (training.run_name, training.seed, training.resume_from_checkpoint) == ("010", 1000, "false")
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert options.model.negated_templates == [] and options.data.train_split == "-x"
    assert options.data.eval_split == "validation"  # null: the default
