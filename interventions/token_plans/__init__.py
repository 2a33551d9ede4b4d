"""``inference-cost``: what token plans save in inference and what they keep; ``models.token_plans`` runs them.

``config`` has the options, ``questions`` reads the data, ``quality`` scores a batch under every plan, ``timing``
measures, ``table`` computes the results, ``sweep`` ties them together.
"""
