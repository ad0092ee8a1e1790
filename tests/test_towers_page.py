"""The page of towers is what the tables of families say."""

from benchmarks import towers_page


def test_the_page_of_towers_is_what_is_declared():
    assert towers_page.PAGE.read_text() == towers_page.page(), "run python -m benchmarks.towers_page"
