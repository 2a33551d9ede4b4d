"""Interventions as plain data: operations and their options, token groups, and the cells of a plan.

The folder defines valid requests and checks them against a model. It does not run them.
"""
