"""Operations: how the name of an intervention becomes edits of a batch.

An operation that edits a run is a file with the function ``edits(spec, batch)`` and an entry of ``build_edits.EDITS``;
its options and defaults are an entry of ``OPERATIONS`` in ``interventions.plan.options``, which imports no torch.
Operations import plans and engines, not metrics or files.
"""
