"""Numbers on the command lines of evaluation and search that are out of range are refused by the name of their option."""

import pytest

import eval.__main__
import mpclip.search.__main__


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", "²"])
@pytest.mark.parametrize(
    "main, argv",
    [
        (eval.__main__.main, ["retrieval", "--batch_size"]),
        (eval.__main__.main, ["differences", "--limit"]),
        (mpclip.search.__main__.main, ["build", "--batch_size"]),
        (mpclip.search.__main__.main, ["query", "--top"]),
    ],
    ids=lambda part: "-".join(part) if isinstance(part, list) else None,
)
def test_a_count_is_a_whole_number_from_one_on(main, argv, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*argv, value])
    assert f"argument {argv[1]}: '{value}' is out of range: expected a whole number of at least 1" in capsys.readouterr().err
