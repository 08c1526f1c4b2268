import logging

from launch import results


def test_numbers_are_merged_and_a_damaged_file_is_written_anew_aloud(tmp_path, caplog):
    assert results.read(tmp_path) == {}
    results.update(tmp_path, {"a": 1, "b": 2})
    assert results.update(tmp_path, {"b": 3}) == {"a": 1, "b": 3} == results.read(tmp_path)
    for text in ("{", "[1]", ""):
        (tmp_path / results.FILE).write_text(text)
        with caplog.at_level(logging.WARNING):
            assert results.update(tmp_path, {"c": 4}) == {"c": 4} == results.read(tmp_path)
        assert "result.json is damaged" in caplog.text
        caplog.clear()
    assert [path.name for path in tmp_path.iterdir()] == [results.FILE]
