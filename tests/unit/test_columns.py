"""The columns of a Parquet file in memory: the same table, whichever way a part of it is asked for."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_shards.columns import BATCH_ROWS, Columns

SCHEMA = pa.schema(
    [
        ("word", pa.string()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("small", pa.int8()),
        ("large", pa.int64()),
    ]
)
ROWS = BATCH_ROWS + 1000


def content_of(table: pa.Table, rows_of_a_group: int = 40_000) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows_of_a_group)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """More rows than are decoded at a time, in groups whose dictionaries differ: kinds come one after the other."""
    rng = np.random.default_rng(0)
    number = np.arange(ROWS)
    values = {
        "word": [f"word-{n:05d}" for n in rng.permutation(ROWS)],
        "kind": np.array(["c", "a", "b"])[number * 3 // ROWS],
        "small": rng.integers(-128, 128, ROWS),
        "large": rng.integers(-(2**62), 2**62, ROWS),
    }
    return pa.table(values).cast(SCHEMA)


@pytest.fixture(scope="module")
def columns(table: pa.Table) -> Columns:
    return Columns(content_of(table), SCHEMA)


def test_the_table_is_read_as_it_was_written(table: pa.Table, columns: Columns) -> None:
    assert columns.num_rows == ROWS
    whole = columns.read()
    assert whole.schema == SCHEMA
    assert whole.to_pydict() == table.to_pydict()
    part = columns.read("large", "kind")
    assert part.column_names == ["large", "kind"]
    assert part.schema.field("kind").type == SCHEMA.field("kind").type
    assert part.to_pydict() == table.select(["large", "kind"]).to_pydict()
    assert columns["word"].equals(table["word"])


def test_a_column_of_numbers_is_one_array_for_all(table: pa.Table, columns: Columns) -> None:
    for name in ("small", "large"):
        numbers = columns.numbers(name)
        assert numbers.dtype == name.replace("small", "int8").replace("large", "int64")
        assert numbers.tolist() == table[name].to_pylist()
        assert columns.numbers(name) is numbers
        with pytest.raises(ValueError, match="read-only"):
            numbers[0] = 1


@pytest.mark.parametrize(("name", "dtype"), [("kind", np.int8), ("word", np.int32)])
def test_words_are_numbers_and_their_meaning(table: pa.Table, columns: Columns, name: str, dtype: type) -> None:
    codes, words = columns.codes(name)
    assert codes.dtype == dtype
    assert len(set(words)) == len(words)
    assert [words[code] for code in codes] == table[name].to_pylist()
    assert columns.codes(name)[0] is codes


def test_rows_are_taken_in_the_order_asked_for(table: pa.Table, columns: Columns) -> None:
    rows = np.array([ROWS - 1, 3, 50_000, 3])
    assert columns.take(rows).to_pydict() == table.take(pa.array(rows)).to_pydict()
    assert columns.take(rows, "word").to_pydict() == table.select(["word"]).take(pa.array(rows)).to_pydict()

    with pytest.raises(pa.ArrowIndexError):
        columns.take(np.array([0, ROWS]), "small")
    with pytest.raises(pa.ArrowIndexError):
        columns.take(np.array([-1]), "small")


def test_columns_of_two_files_are_compared(table: pa.Table, columns: Columns) -> None:
    """Whatever the row groups; one other value, one row fewer or another order make them differ."""
    words = table["word"].to_pylist()
    assert columns.same(Columns(content_of(table, 7_000), SCHEMA), "word")
    swapped = [*words[:60_000], words[60_001], words[60_000], *words[60_002:]]
    for other in ([*words[:-1], "word"], swapped):
        changed = table.set_column(0, "word", pa.array(other))
        assert not columns.same(Columns(content_of(changed), SCHEMA), "word")
        assert columns.same(Columns(content_of(changed), SCHEMA), "kind")
    assert not columns.same(Columns(content_of(table.slice(0, ROWS - 1)), SCHEMA), "word")


def test_words_are_compared_whatever_their_codes(table: pa.Table, columns: Columns) -> None:
    kinds = table["kind"].to_pylist()
    for other, same in (
        (pa.array(kinds[::-1]).dictionary_encode().take(pa.array(np.arange(ROWS)[::-1])), True),  # codes of "b" first
        (pa.array([*kinds[:-1], kinds[0]]), False),
        (pa.array([*kinds[:-1], "z"]), False),
    ):
        changed = table.set_column(1, "kind", other.cast(SCHEMA.field("kind").type))
        assert columns.same(Columns(content_of(changed, ROWS), SCHEMA), "kind") == same
    assert columns.same(columns, "kind")


def test_a_table_without_rows_has_its_columns() -> None:
    columns = Columns(content_of(SCHEMA.empty_table()), SCHEMA)
    assert columns.read().equals(SCHEMA.empty_table())
    assert columns.numbers("large").tolist() == []
    assert columns.numbers("large").dtype == np.int64
    assert columns.codes("kind")[0].tolist() == columns.codes("word")[0].tolist() == []
    assert columns.take(np.empty(0, np.int64)).num_rows == 0


def test_a_name_that_is_no_column_is_an_error(columns: Columns) -> None:
    for ask in (columns.numbers, columns.codes, columns.read, columns.__getitem__):
        with pytest.raises(KeyError, match="nothing"):
            ask("nothing")


def test_numbers_do_not_hold_what_decoding_took(columns: Columns, table: pa.Table) -> None:
    """Only the arrays stay: nothing of Arrow's, which would be the words of a million keys."""
    fresh = Columns(content_of(table), SCHEMA)
    before = pa.total_allocated_bytes()
    fresh.numbers("large")
    fresh.codes("kind")
    assert fresh.read("word").num_rows == ROWS
    assert pa.total_allocated_bytes() == before
