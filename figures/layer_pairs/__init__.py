"""Figures of pairs of layers: what is fitted at one layer and read at another."""
