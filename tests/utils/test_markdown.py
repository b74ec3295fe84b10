from dfkd.utils.markdown import escape, table


def test_texts_of_strangers_are_no_markup() -> None:
    assert escape("a|b\n# <i>*c*\x1b[0m") == "a|b \\# \\<i\\>\\*c\\* \\[0m"
    assert escape("`ink` ~x~ \\ _art_ art_painting") == (
        "\\`ink\\` \\~x\\~ \\\\ \\_art\\_ art_painting"
    )


def test_a_table_is_padded_and_aligned() -> None:
    lines = ["| a\\|b |    % |", "| ---- | ---: |", "| c    |   50 |", "| d    | 12.5 |"]
    assert table(["a|b", "%"], [["c", "50"], ["d", "12.5"]]).splitlines() == lines
    assert table(["a", "b"], [["c", "d"]], names=2).splitlines()[1] == "| --- | --- |"
