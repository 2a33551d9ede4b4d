"""The official scoring rules of benchmarks, exact, one module for each; ``tasks.scoring`` chooses between them."""
