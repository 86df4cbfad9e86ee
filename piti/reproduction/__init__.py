"""Reproduction of the paper's tables: training, generation, evaluation, and the tables."""
