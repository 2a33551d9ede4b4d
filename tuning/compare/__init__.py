"""Several plans side by side: options, data, runs, and the table.

It uses all other folders of ``tuning`` except ``embedded``.
"""
