"""A table in a Parquet file, read column by column, as each one is asked for."""

from collections.abc import Iterator
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 1 << 16
"""Rows decoded at a time: what a column takes on its way is a small part of what it takes in the end."""


class Columns:
    """The columns of a Parquet file that is held in memory as it was written.

    An index has a row for every sample, millions of them, and most of its users need a few columns. The file is a
    fraction of the size of its table, and whoever checked these bytes knows that all columns are read from them.

    Args:
        content: Of the file.
        schema: Names and types of the columns; the file's own types are cast to them.
    """

    def __init__(self, content: bytes, schema: pa.Schema) -> None:
        self._content, self._schema = content, schema
        self._numbers: dict[str, np.ndarray] = {}
        self._codes: dict[str, tuple[np.ndarray, list[str]]] = {}
        self.num_rows: int = self._file().metadata.num_rows

    def read(self, *names: str) -> pa.Table:
        """The columns of these names, or all of them; nothing is kept."""
        schema = self._part(names or self._schema.names)
        return pa.Table.from_batches(self._batches(schema), schema)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """One column; nothing is kept."""
        return self.read(name)[name]

    def take(self, rows: np.ndarray, *names: str) -> pa.Table:
        """Rows by number, in this order, of the columns as `read`, which are never whole in memory.

        Raises:
            pa.ArrowIndexError: there is no row of such a number.
        """
        schema = self._part(names or self._schema.names)
        order = np.argsort(rows, kind="stable")
        ascending, first = rows[order], 0
        found: list[pa.RecordBatch] = []
        for batch in self._batches(schema):
            start, stop = np.searchsorted(ascending, (first, first + batch.num_rows))
            if start < stop:
                found.append(batch.take(pa.array(ascending[start:stop] - first)))
            first += batch.num_rows
            if stop == len(rows):
                break
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return pa.Table.from_batches(found, schema).unify_dictionaries().take(pa.array(places))

    def pieces(self, rows: np.ndarray, *names: str) -> Iterator[pa.RecordBatch]:
        """As `take`, piece by piece: at most `BATCH_ROWS` rows each, and none of them is kept.

        Args:
            rows: int64 `[N]`, ascending.
            names: As `read`.
        """
        schema, first = self._part(names or self._schema.names), 0
        for batch in self._batches(schema):
            start, stop = np.searchsorted(rows, (first, first + batch.num_rows))
            if start < stop:
                yield batch.take(pa.array(rows[start:stop] - first))
            first += batch.num_rows
            if stop == len(rows):
                break

    def same(self, other: Self, name: str) -> bool:
        """Whether a column is equal in both; only one of the two is ever whole in memory, or the codes of words."""
        if self.num_rows != other.num_rows:
            return False
        if pa.types.is_dictionary(self._schema.field(name).type):
            codes, words = self.codes(name)
            other_codes, other_words = other.codes(name)
            ours = np.array([words.index(word) if word in words else -1 for word in other_words], np.int64)
            return np.array_equal(codes, ours[other_codes])
        column, first = self[name], 0
        for batch in other._batches(other._part([name])):
            if not pa.chunked_array(batch.columns).equals(column.slice(first, batch.num_rows)):
                return False
            first += batch.num_rows
        return True

    def numbers(self, name: str) -> np.ndarray:
        """A column of whole numbers, `[N]` of the schema's type; made when it is first asked for, then shared."""
        if name not in self._numbers:
            schema = self._part([name])
            # `to_numpy` would import pandas, where that is installed, for 30 MB and 0.2 s.
            parts = [np.from_dlpack(batch.column(0)) for batch in self._batches(schema)]
            self._numbers[name] = _shared(parts, schema.field(name).type)
        return self._numbers[name]

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A column of words as whole numbers `[N]`, and the words that they stand for; kept as `numbers` are."""
        if name not in self._codes:
            column = self[name]
            if not pa.types.is_dictionary(column.type):
                column = column.dictionary_encode()
            column = column.unify_dictionaries()
            words = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
            parts = [np.from_dlpack(chunk.indices) for chunk in column.chunks]
            index_type = column.type.index_type
            del column
            self._codes[name] = _shared(parts, index_type), words
        return self._codes[name]

    def _part(self, names: tuple[str, ...] | list[str]) -> pa.Schema:
        return pa.schema([self._schema.field(name) for name in names])

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._file().iter_batches(BATCH_ROWS, columns=schema.names, use_threads=False):
                yield batch.select(schema.names).cast(schema)
        finally:
            _give_back()

    def _file(self) -> pq.ParquetFile:
        # One for each reading, so that threads share nothing but the bytes.
        return pq.ParquetFile(pa.BufferReader(self._content), pre_buffer=False)


def _give_back() -> None:
    # Arrow's pool would keep what decoding took, several times the column, for a later use that there isn't.
    pa.default_memory_pool().release_unused()


def _shared(parts: list[np.ndarray], of_type: pa.DataType) -> np.ndarray:
    """Join arrays into one that nobody writes to; `parts` are let go."""
    joined = np.concatenate(parts) if parts else np.empty(0, of_type.to_pandas_dtype())
    parts.clear()
    joined.flags.writeable = False
    _give_back()
    return joined
