import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from raymerge.data.interactions import FORMATS, LogConfig, LogReader, detect_format, open_log
from raymerge.errors import ConfigError, InputError, UnknownNameError

ROWS = [("anna", "x", "3"), ("bo", "y", "1")]


def read(path: Path, **options: Any) -> tuple[list[tuple], LogReader]:
    with open_log(str(path), LogConfig(**options)) as log:
        batches = list(log.batches)
        columns = [pa.chunked_array([batch[name] for batch in batches]).to_pylist() for name in log.schema.names]
        return [
            tuple(None if value is None else str(value) for value in row) for row in zip(*columns, strict=True)
        ], log


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


CONTENT = {
    "csv": "timestamp,item,rating,user\n3,x,5,anna\n1,y,4,bo\n",
    "tsv": "user\titem\ttimestamp\nanna\tx\t3\nbo\ty\t1\n",
    "movielens": "anna::x::5::3\nbo::y::4::1\n",
    "sequences": "anna x\nbo y\n",
}


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("how", ["by content", "by name"])
def test_each_text_format_gives_the_same_rows(tmp_path: Path, name: str, how: str) -> None:
    path = write(tmp_path / "log", CONTENT[name])
    rows, _ = read(path, format="auto" if how == "by content" else name)
    assert rows == ([row[:2] for row in ROWS] if name == "sequences" else ROWS)


def test_every_registered_format_is_tested_here() -> None:
    assert set(FORMATS) == {*CONTENT, "parquet"}


def test_parquet_is_read_by_column_names_in_any_order(tmp_path: Path) -> None:
    table = pa.table({"when": [3, 1], "thing": ["x", "y"], "other": [[1], [2]], "who": ["anna", "bo"]})
    pq.write_table(table, tmp_path / "log.parquet")
    rows, log = read(tmp_path / "log.parquet", user="who", item="thing", timestamp="when")
    assert rows == ROWS
    assert log.schema.types == [pa.string(), pa.string(), pa.int64()]


def test_without_a_timestamp_column_the_rows_have_none(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "log.csv", CONTENT["csv"]), timestamp=None)
    assert rows == [row[:2] for row in ROWS]


def test_a_column_of_markets_is_read_if_named(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "log.csv", CONTENT["csv"]), market="rating")
    assert rows == [(*ROWS[0], "5"), (*ROWS[1], "4")]
    table = pa.table({"shop": ["a", "b"], "timestamp": ["3", "1"], "item": ["x", "y"], "user": ["anna", "bo"]})
    pq.write_table(table, tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet", market="shop")[0] == [(*ROWS[0], "a"), (*ROWS[1], "b")]
    assert read(tmp_path / "log.parquet", market="shop", timestamp=None)[0] == [("anna", "x", "a"), ("bo", "y", "b")]


def test_a_file_without_header_takes_its_column_names_from_the_options(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "anna|5|x|3\nbo|4|y|1\n")
    rows, _ = read(path, column_names=("user", "rating", "item", "timestamp"), delimiter="|")
    assert rows == ROWS


def test_compressed_text_is_read_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(CONTENT["csv"].encode()))
    (tmp_path / "log.gz").write_bytes(gzip.compress(CONTENT["movielens"].encode()))
    assert read(tmp_path / "log.csv.gz")[0] == read(tmp_path / "log.gz")[0] == ROWS


def test_quoted_lines_are_one_value_wherever_a_block_ends(tmp_path: Path) -> None:
    text = "".join(
        f'{number},"{number % 7}","a line,{"x" * (number % 90)}\nfoo,bar,""baz""",1\n' for number in range(90_000)
    )
    rows, log = read(write(tmp_path / "log.csv", "user,item,text,timestamp\n" + text))
    assert len(text) > 4 << 20, "several blocks"
    assert rows == [(str(number), str(number % 7), "1") for number in range(90_000)]
    assert not log.malformed


@pytest.mark.parametrize(("row", "rows"), [('1,x,"3\n', 2_000), ('1,x,"3\n', 1_500_000), ('1,"x,3\n', 1_500_000)])
def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path, row: str, rows: int) -> None:
    path = write(tmp_path / "log.csv", "user,item,timestamp\n" + "1,x,3\n" * 1000 + row + "2,y,4\n" * rows)
    with pytest.raises(InputError, match=r"log\.csv cannot be read: a quote .* is not closed on its line"):
        read(path)


@pytest.mark.parametrize("between", [500, 300_000])
def test_rows_between_two_stray_quotes_are_not_taken_for_one_value(tmp_path: Path, between: int) -> None:
    few = "1,x,3\n" * 1000
    path = write(
        tmp_path / "log.csv", "user,item,timestamp\n" + few + '1,"x,3\n' + "2,y,4\n" * between + '3,"z,5\n' + few
    )
    with pytest.raises(InputError, match="is not closed on its line"):
        read(path)


def test_values_of_several_lines_are_read_however_many_there_are(tmp_path: Path) -> None:
    row = '1,x,3,"so\n""good""\n, I say"\n'
    rows, _ = read(write(tmp_path / "log.csv", "user,item,timestamp,review\n" + row * 100_000))
    assert len(rows) == 100_000


def test_all_lines_of_a_malformed_row_are_counted(tmp_path: Path) -> None:
    text = "user,item,timestamp\n" + "1,x,3\n" * 1000 + '1,"x,3\n' + "2,y,4\n" * 2000
    rows, log = read(write(tmp_path / "log.csv", text))
    assert len(rows) == 1000
    assert log.malformed >= 2001


def test_a_quote_within_a_value_is_part_of_it(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "log.csv", "user,item,timestamp\n\n" + 'anna,5" disk,3\n' + "bo,y,1\n" * 3 + "\n"))
    assert rows[0] == ("anna", '5" disk', "3")
    assert len(rows) == 4


def test_quotes_byte_order_mark_and_windows_line_ends_are_understood(tmp_path: Path) -> None:
    text = '\ufeff"user",item,timestamp\r\n"anna","x",3\r\n"bo, jr.","y ""2""",1\r\n'
    assert read(write(tmp_path / "log.csv", text))[0] == [("anna", "x", "3"), ("bo, jr.", 'y "2"', "1")]


def test_ids_that_look_like_numbers_or_nothing_stay_as_written(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,timestamp\n007,NA,1\n1.0,null,2\n")
    assert read(path)[0] == [("007", "NA", "1"), ("1.0", "null", "2")]


def test_rows_with_a_wrong_number_of_columns_are_counted(tmp_path: Path) -> None:
    rows, log = read(write(tmp_path / "log.csv", "user,item,timestamp\nanna,x,3\nbo,y\nbo,y,1,9\nbo,y,1\n"))
    assert rows == ROWS
    assert log.malformed == 2


def test_sequence_text_accepts_any_blanks_and_keeps_users_without_items(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path / "log.txt", "  anna x\ty   x\n\n7\nbo z"), format="sequences")
    assert rows == [("anna", "x"), ("anna", "y"), ("anna", "x"), ("7", None), ("bo", "z")]


def test_a_large_file_comes_in_several_batches_and_reports_its_position(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,timestamp\n" + "u12345,i12345,1234567890\n" * 400_000)
    with open_log(str(path), LogConfig()) as log:
        positions = [(len(batch), log.position()) for batch in log.batches]
        assert sum(rows for rows, _ in positions) == 400_000
        assert len(positions) > 1
        assert positions[-1][1] == log.size == path.stat().st_size


def test_a_header_alone_is_a_log_without_rows(tmp_path: Path) -> None:
    with open_log(str(write(tmp_path / "log.csv", "user,item,timestamp\n")), LogConfig()) as log:
        assert list(log.batches) == []


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.csv", b"", "csv"),
        ("A.TSV", b"", "tsv"),
        ("a.csv.gz", b"", "csv"),
        ("a.pq", b"", "parquet"),
        ("part-0", b"PAR1\x00", "parquet"),
        ("ratings.dat", b"1::2::3::4\n", "movielens"),
        ("a.txt", b"1 2 3\n4,5", "sequences"),
        ("a.b", b"user\titem\n", "tsv"),
    ],
)
def test_formats_are_detected_by_suffix_or_first_line(name: str, head: bytes, expected: str) -> None:
    assert detect_format(name, head) == expected


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as caught, open_log(str(path), LogConfig(**options)) as log:
        list(log.batches)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_log_are_refused_in_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "none.csv", r"no such file: .*none\.csv")
    refused(write(tmp_path / "empty.csv", ""), r"empty\.csv is empty")
    refused(
        write(tmp_path / "a.csv", "who,item,timestamp\n1,2,3\n"), "no column 'user', it has 'who', 'item', 'timestamp';"
    )
    refused(write(tmp_path / "b.csv", CONTENT["csv"]), "no column 'shop', it has 'timestamp', 'item'", market="shop")
    refused(
        write(tmp_path / "a.dat", CONTENT["movielens"]),
        "is of format movielens, which has no markets",
        market="rating",
    )
    refused(write(tmp_path / "word", "word\n"), "word; set prepare.format to one of csv, tsv, movielens, parquet")
    refused(write(tmp_path / "a.parquet", "user,item\n1,2\n"), r"a\.parquet cannot be read: .*Parquet")
    refused(write(tmp_path / "a.csv.gz", "user,item\n1,2\n"), r"a\.csv\.gz cannot be read")
    refused(write(tmp_path / "latin.csv", "user,item,timestamp\né,x,1\n", "latin-1"), "cannot be read: .*UTF")
    refused(write(tmp_path / "head.csv", "é,user,item,timestamp\n", "latin-1"), "cannot be read: .*utf-8")


def test_columns_of_wrong_types_are_refused_by_the_names_in_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"who": [True], "item": [1], "when": [1]}), tmp_path / "ids.parquet")
    refused(tmp_path / "ids.parquet", "column 'who' of .* holds bool", user="who", timestamp="when")
    pq.write_table(pa.table({"user": [1], "item": [1], "when": [[1]]}), tmp_path / "times.parquet")
    refused(tmp_path / "times.parquet", "column 'when' of .* holds list<", timestamp="when")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": range(1000), "item": range(1000), "timestamp": range(1000)}), path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "cannot be read")


def test_contradictory_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'xls'; known: csv"):
        LogConfig(format="xls")
    with pytest.raises(ConfigError, match="must name different columns"):
        LogConfig(user="id", item="id")
    with pytest.raises(ConfigError, match=r"prepare\.delimiter must be a single byte, got '::'"):
        LogConfig(delimiter="::")


def test_an_error_in_the_code_that_reads_a_log_is_not_blamed_on_the_log(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", CONTENT["csv"])
    with pytest.raises(OSError, match="disk"), open_log(str(path), LogConfig()) as log:
        for _ in log.batches:
            raise OSError("disk full")
    assert Path(path).exists()


def test_a_byte_order_mark_of_sequences_is_no_part_of_an_id(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("\ufeff1 5 6\n", encoding="utf-8")
    rows, _ = read(tmp_path / "log.txt", format="sequences")
    assert rows == [("1", "5"), ("1", "6")]
