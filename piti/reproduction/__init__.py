"""The paper's tables made again: what they need trained, generated and evaluated, and the tables that come of it."""
