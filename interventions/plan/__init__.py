"""Interventions as plain data: operations and their options, token groups, and the cells of a plan.

It defines the valid requests and checks them against a model. It does not run them.
"""
