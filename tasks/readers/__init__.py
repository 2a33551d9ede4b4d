"""The user's own data: a JSONL or Parquet file with a folder of pictures becomes a ``Dataset``.

It reads the file formats and checks every row. It does not depend on models or on the use of the examples.
"""
