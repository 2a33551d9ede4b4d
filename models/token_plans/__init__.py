"""Token plans: in which layers of the language model image tokens are computed, and what that costs.

``plan`` reads a plan from text, ``forward`` runs the language model under it, ``selection`` chooses the tokens that
stay, and ``cost`` is the closed form of its price.
"""
