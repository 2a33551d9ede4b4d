"""The twelve benchmarks of LLaVA-1.5: their question files, prompts, rules, answer files and upload files.

One module for each, with the same names: ``FILES``, ``prompt``, ``read``, ``parse``, ``score`` and
``write_submission``. ``registry`` lists them. The package knows nothing of models: answers are texts.
"""
