"""Several plans side by side: options, data, runs, and the table.

The package imports every other package of ``tuning`` except ``embedded``.
"""
